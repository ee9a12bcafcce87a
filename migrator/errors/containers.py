# SPDX-License-Identifier: GPL-2.0-or-later
"""Names, containers and the order of stages."""

from __future__ import annotations

from migrator.errors import MigratorError


class InvalidName(MigratorError):
    """{what} {name} is not a valid name: {reason}."""

    status = 20
    cure = "A name is 1 to 63 letters, digits, '.', '_' or '-', and begins with a letter or digit."


class ContainerNotFound(MigratorError):
    """There is no container {name} in {lxcpath}."""

    status = 21
    cure = "List the containers with: lxc-ls -f -P {lxcpath}"


class ContainerNotRunning(MigratorError):
    """The container {name} is {state}, not RUNNING."""

    status = 22
    cure = "Start it with: lxc-start -P {lxcpath} {name} -- or, where it is frozen: lxc-unfreeze -P {lxcpath} {name}"


class MovedAway(ContainerNotRunning):
    """{name} has moved to {there} (migration {id}), and its copy here is fenced."""

    status = 90
    cure = "To move it back, run on {host}: {back}"


class ContainerExists(MigratorError):
    """{host_name} already has a container {name} in {lxcpath}, or a rootfs there, that did not come from this one."""

    status = 23
    cure = "Rename or remove it there, or choose another name with --new-name."


class HasClones(MigratorError):
    """On {host_name}, {list} lists clones (lxc-copy -s) that are overlays on the root file system of the copy of {name}
    in {lxcpath}: it must not be moved from under them."""

    status = 37
    cure = """Destroy the clones there first, or remove that file if none of them exists any more; or choose another
        name with --new-name."""


class ConfigInvalid(MigratorError):
    """The configuration of {name} cannot be carried over: {reason}"""

    status = 24


class AlreadyMigrating(MigratorError):
    """{name} is already being migrated to {peer} (migration {id})."""

    status = 25
    cure = "Continue with: {next} -- or give that migration up with: migrator rollback {name} {path}"


class NoMigration(MigratorError):
    """This host has no migration of {name} that {stage} could continue."""

    status = 26
    cure = "Start one with: {next}"


class NotKnownThere(MigratorError):
    """{destination} does not know migration {id} of {name}: it is a different host, or has lost its journal."""

    forgotten = False  # it has the name of the host that the container was sent to, but knows no migration of that id
    another = False  # it knows no migration of that id and, as far as can be seen, is not that host
    status = 35
    cure = "It was sent to {peer}: make sure that this name leads to that very host, and not to another one."


class OutOfOrder(MigratorError):
    """{stage} cannot run now: {missing}."""

    status = 27
    cure = "Next: {next}"


class ContainerChanged(MigratorError):
    """{name} has changed since prepare-data: {reason}."""

    status = 28
    cure = "Send it again: {next}"


class AlreadyRuns(MigratorError):
    """{name} already runs on {destination}: rolling back would lose what it has done there."""

    status = 29
    cure = "Complete the migration with: {next} -- then move it back with a new migration from there."


class GoneThere(AlreadyRuns):
    """{name} has run on {destination} and is no longer there, whatever has that name now: it was destroyed or
    renamed."""

    status = 31
    cure = """If it was renamed there, rename it back, with mv rather than with lxc-copy -R, which leaves a copy, and
        continue. If it was destroyed, make sure that nothing of it runs there under another name (lxc-ls -f). What it
        has done there is then lost; the copy on {source}, as it was before the move, is the last one; let it run again
        with: {next}"""


class StoppedThere(AlreadyRuns):
    """{name} was allowed to run on {destination}, and had stopped before that could be recorded: it has run there for a
    while, for a moment, or not at all."""

    status = 38
    cure = """Unless {source} has been rebooted since, its memory is still frozen there. One of the two will be lost,
        and only you can choose which. To keep what it has written on {destination} ({rootfs}) and start it there, run
        on that host: {start} -- to keep the memory instead, destroy it there (lxc-destroy -P {lxcpath} -n {there}),
        then: {back}"""


class BackThere(AlreadyRuns):
    """The copy of {name} on {destination} had yielded to the one on the source, and is back: {how}."""

    status = 19
    cure = """The two must not both run, and only you can choose which stays. To keep the halted one, as it was before
        the move, stop the other on {destination}, under the name that it has there now: lxc-stop -k -P {lxcpath}
        {there} -- then rename it, which keeps what it has written: lxc-copy -R -P {lxcpath} -n {there} -N NEWNAME --
        and make sure that NEWNAME does not start at boot, alongside the other and with its addresses: lxc.start.auto =
        0 -- or destroy it: lxc-destroy -P {lxcpath} -n {there} -- after that: {next} -- To keep the one on
        {destination}, and end the halted one: {keep}"""


class MovedOn(BackThere):
    """The copy of {name} on {destination} had yielded to the one on the source, and has since moved on: the fence of
    that move is in place there."""

    status = 81
    cure = """It lives on where it went, with all that it has done; after a rollback two would run. To see where that
        is, run migrator status -a {there} on {destination}. To end the halted copy, as it was before the first move:
        {keep}"""


class RunsUnrecorded(AlreadyRuns):
    """{name} runs on {destination}, but the journal there does not say so; it is an older one, or was lost: {how}."""

    status = 80
    cure = """The two must not both run, and only you can choose which stays. To keep that one, with all that it has
        done there, and end the halted one on the source: {keep} -- To keep the latter, as it was before the move, stop
        the one on {destination}, under the name that it has there now: lxc-stop -k -P {lxcpath} {there} -- then rename
        it, which keeps what it has written: lxc-copy -R -P {lxcpath} -n {there} -N NEWNAME -- make sure that NEWNAME
        does not start at boot, alongside the other and with its addresses: lxc.start.auto = 0 -- after that: {next}"""


class DiskAway(MigratorError):
    """What migrator keeps of {name} below {lxcpath} on {host_name} is not visible ({reason}): the disk is not mounted,
    or another one is in its place."""

    status = 39
    cure = """Nothing is considered lost, or removed, until it can be seen. Mount the disk on {host_name} (findmnt -T
        {lxcpath} shows what is there now), then run the command again. {otherwise}"""
