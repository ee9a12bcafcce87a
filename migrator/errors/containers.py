# SPDX-License-Identifier: GPL-2.0-or-later
"""Names, containers and the order of stages."""

from __future__ import annotations

from migrator.errors import MigratorError


class InvalidName(MigratorError):
    """{what} {name} is not a valid name: {reason}."""

    status = 20
    cure = "Names have 1 to 63 letters, digits, '.', '_' or '-' and begin with a letter or digit."


class ContainerNotFound(MigratorError):
    """There is no container {name} in {lxcpath}."""

    status = 21
    cure = "See what there is with: lxc-ls -f -P {lxcpath}"


class ContainerNotRunning(MigratorError):
    """The container {name} is {state}, not RUNNING."""

    status = 22
    cure = "Start it with: lxc-start -P {lxcpath} {name} -- or, where it is frozen: lxc-unfreeze -P {lxcpath} {name}"


class ContainerExists(MigratorError):
    """{host_name} already has a container {name} in {lxcpath}, or a rootfs there, that did not come from this one."""

    status = 23
    cure = "Rename or remove it there, or choose another name with --new-name."


class HasClones(MigratorError):
    """On {host_name}, clones (lxc-copy -s) are overlays on the root file system of the copy of {name} in {lxcpath}, as
    {list} says: it must not be moved away under them."""

    status = 37
    cure = """Destroy the clones there first, and where none of them exists any more remove that file; or choose another
    name with --new-name."""


class ConfigInvalid(MigratorError):
    """The configuration of {name} cannot be carried over: {reason}"""

    status = 24


class AlreadyMigrating(MigratorError):
    """{name} is already being migrated to {peer} (migration {id})."""

    status = 25
    cure = "Go on with: {next} -- or give that migration up with: migrator rollback {name} {path}"


class NoMigration(MigratorError):
    """There is no migration of {name} on this host that {stage} could go on with."""

    status = 26
    cure = "It begins with: {next}"


class NotKnownThere(MigratorError):
    """{destination} does not know migration {id} of {name}: it is another host, or has lost its journal."""

    forgotten = False  # it goes by the name of the host that it was sent to, and knows none by that id
    another = False  # it knows none by that id, and is not that host, for all that it shows
    status = 35
    cure = "It was sent to {peer}: see that this names the host that it was sent to, and not another one."


class OutOfOrder(MigratorError):
    """{stage} cannot run now: {missing}."""

    status = 27
    cure = "Next: {next}"


class ContainerChanged(MigratorError):
    """{name} has changed since prepare-data: {reason}."""

    status = 28
    cure = "Send it again: {next}"


class AlreadyRuns(MigratorError):
    """{name} already runs on {destination}: rolling back would lose what it did there."""

    status = 29
    cure = "Complete the migration with: {next} -- and move it back with a new migration from there."


class GoneThere(AlreadyRuns):
    """{name} has run on {destination}, and is not there any more, whatever is called so now: destroyed, or renamed."""

    status = 31
    cure = """If it was renamed there, rename it back, with mv rather than with lxc-copy -R, which leaves a copy, and go
    on. If it was destroyed, see there that nothing of it runs by another name (lxc-ls -f). What it has done there is
    lost then; the copy on {source}, as it was before the move, is the last one, and runs on with: {next}"""


class StoppedThere(AlreadyRuns):
    """{name} was let run on {destination}, and had stopped before that could be recorded: it has run there for a while,
    for a moment, or not at all."""

    status = 38
    cure = """Unless {source} was rebooted since, its memory is still frozen there: one of the two is lost, and only you
    can choose. To keep what it has written on {destination} ({rootfs}), and start it from there, type on that host:
    {start} -- to keep the memory instead, destroy it there (lxc-destroy -P {lxcpath} -n {there}), then: {back}"""


class BackThere(AlreadyRuns):
    """{name} had given way on {destination}, and is back there: {how}."""

    status = 19
    cure = """Two must not run, and only you can choose. To keep what stands still, as it was before the move, stop the
    other one on {destination}, by the name that it has there now: lxc-stop -k -P {lxcpath} {there} -- then rename it,
    which keeps what it has written: lxc-copy -R -P {lxcpath} -n {there} -N NEWNAME -- and see that NEWNAME does not
    start at boot, beside the other one and with its addresses: lxc.start.auto = 0 -- or destroy it: lxc-destroy
    -P {lxcpath} -n {there} -- after that: {next} -- To keep that one, and end what stands still: {keep}"""


class MovedOn(BackThere):
    """{name} had given way on {destination}, and has gone elsewhere from there since: the fence of that move stands
    there."""

    status = 81
    cure = """It lives on where it went, with all that it has done: rolled back, two would run. Where that is,
    migrator status -a {there} tells on {destination}. To end what stands still, as it was before the first move:
    {keep}"""


class RunsUnrecorded(AlreadyRuns):
    """{name} runs on {destination}, though the journal there does not say so, which is an older one, or was lost:
    {how}."""

    status = 80
    cure = """Two must not run, and only you can choose. To keep that one, with all that it has done there, and end what
    stands still on the source: {keep} -- To keep the latter, as it was before the move, stop that one on {destination},
    by the name that it has there now: lxc-stop -k -P {lxcpath} {there} -- then rename it, which keeps what it has
    written: lxc-copy -R -P {lxcpath} -n {there} -N NEWNAME -- see that NEWNAME does not start at boot, beside the
    other one and with its addresses: lxc.start.auto = 0 -- after that: {next}"""


class DiskAway(MigratorError):
    """What migrator keeps of {name} below {lxcpath} on {host_name} is not to be seen there ({reason}): it is not
    mounted, or is another disk."""

    status = 39
    cure = """Nothing is taken for lost or removed before it is seen. Mount it on {host_name} (findmnt -T {lxcpath}
    tells what is there now), then run the command again. {otherwise}"""
