# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether what was frozen or stopped on the source still is; checked before its destination is told so.

From the offer on, the fence keeps it from being started and nobody thaws it. But a fence is just text, which anything
that manages the host's configuration files may remove, and anybody may type lxc-unfreeze. So the source checks, and
restores the fence, before the token is offered again and before it gives its word that the container may run there. The
same goes for what keeps it silent, which is lost when someone reloads the host's nftables rules.
"""

from __future__ import annotations

import contextlib
import shlex

from migrator.base import boot_clock, log
from migrator.config import container_config, fences
from migrator.copies import autostart, origins, remains, second_start
from migrator.copies.thawing import Frozen
from migrator.errors import MigratorError
from migrator.errors.containers import ContainerNotFound, OutOfOrder
from migrator.host import lxc, network
from migrator.record import next_commands
from migrator.record.journal import Migration
from migrator.record.states import State

_PUT_BACK = "The fence was put back in boot"  # as it appears in the fence's message


def require(migration: Migration, stage: str, next_: str = "") -> None:
    """Make sure that it cannot be started here; raises OutOfOrder if it runs, in which case `stage` must not go on.

    `next_` is the command to advise; a rollback by default. Also raises OutOfOrder if the fence had to be restored
    while an lxc-autostart is running that may have read the old configuration: `stage` can be tried again once that has
    ended.
    """
    restore_fence(migration)
    if migration.ended and is_in_use(migration):
        raise OutOfOrder(stage=stage, next=next_commands.command("status", migration),
                         missing=f"that has ended on {next_commands.this_host()}, where someone has since removed the "
                                 f"fence of {migration.name}, so that it may run here again")
    # One that has ended by now has started all it ever will.
    late = autostart.under_way() if is_put_back(migration) else None
    if runs(migration):
        raise OutOfOrder(
            stage=stage, next=next_ or next_commands.command("rollback", migration),
            missing=f"{migration.name} runs on {next_commands.this_host()}, where it should be frozen or stopped: "
                    "someone has thawed it, or started it past its fence")
    if late is not None:
        raise autostart.out_of_order(migration, stage, next_ or next_commands.next_command(migration), late)


def refuse_end(migration: Migration, stage: str) -> None:
    """Raise OutOfOrder if it has carried on with this disk: only its administrator may end that.

    Once ending it has begun, anything thawed, or about to be, is being ended; another start of it is not. Someone who
    merely looks into its root file system is no start either: a finish ends nothing of theirs.
    """
    ending = migration.state is State.FINISHING
    thawed = not ending and remains.was_thawed(migration)
    if thawed or (_is_another(migration) if ending else started_anew(migration)):
        restore_fence(migration)
        done = "thawed it here" if thawed else "started it here too, past its fence"
        raise OutOfOrder(
            stage=stage,
            next=f"{end_of(migration, thawed=thawed)} -- and then: {next_commands.again(stage, migration)}",
            missing=f"{migration.name} has run on {next_commands.moved_to(migration)}, and someone has {done}. What it "
                    f"has written here since is not there{'' if thawed else doubt(migration)}")


def end_of(migration: Migration, *, thawed: bool = False) -> str:
    """How its administrator ends what was `thawed`, or else started: by name only if LXC knows that very start by it.
    """
    pid = migration.still.first[0] if thawed else _beside(migration) or remains.on_disk(migration)
    by_name = pid is None
    with contextlib.suppress(MigratorError, OSError):
        by_name = by_name or lxc.Container(migration.name, migration.lxcpath).init_pid == pid
    if by_name:
        return shlex.join(["lxc-stop", "-P", str(migration.lxcpath), "-n", migration.name])
    return f"kill -9 {pid}"  # PID 1 of its pid namespace: all others go with it


def doubt(migration: Migration) -> str:
    """What is uncertain about what was started beside it or on its disk; see `second_start.doubt`."""
    found = _beside(migration)
    if found is None:
        found = remains.on_disk(migration)
    return "" if found is None else remains.doubt(migration, found)


def refuse_autostart(migration: Migration, stage: str) -> None:
    """Before ending what is frozen here: raise OutOfOrder while an lxc-autostart (see `require`) may start it."""
    restore_fence(migration)
    if is_put_back(migration):
        autostart.refuse(migration, stage, next_commands.again(stage, migration))


def restore_fence(migration: Migration) -> None:
    """Restore the fence if someone removed all or part of it; another container of that name gets none.

    Neither does one that has moved away for good: whoever removes its fence then may have no other copy. A snapshot
    that someone has put in its place does get one, because LXC creates that container without a fence.
    """
    if migration.ended:
        return
    folder = migration.lxcpath / migration.name
    try:
        text = container_config.text_of(folder / "config")
    except OSError:
        return  # there is nothing that could be started
    if not fences.holds(folder, text, migration.id) and origins.has_source_disk(migration):
        log.warning(f"The fence of {migration.name} was removed or changed: it is put back")
        container_config.fence(folder, text, migration.id, put_back(message(migration)))


def is_heard(migration: Migration) -> bool:
    """Whether nothing silences the frozen container any more, so that its kernel answers the network for it."""
    return (migration.state in (State.OFFERED, State.DUMPED) and bool(migration.still.ports)
            and remains.first_is_here(migration) and not remains.was_thawed(migration)
            and not network.is_silent(migration.id))


def restore_silence(migration: Migration) -> None:
    """Silence it again if necessary.

    The caller has the container locked, so nobody can thaw it meanwhile and be cut off.
    """
    try:
        if is_heard(migration):
            log.warning(f"The network of {migration.name} was no longer silenced, as after `nft flush ruleset`: it is "
                        "silenced again. What its kernel has acknowledged meanwhile is read only after a rollback: if "
                        "it continues on its destination, the connections that this came by may break")
            network.silence(migration.id, migration.still.ports)
    except (MigratorError, OSError) as error:
        log.warning(f"The network of {migration.name}, which is to stay silenced, could not be checked or silenced "
                    f"again: {error}")


def is_in_use(migration: Migration) -> bool:
    """On the source: whether it can be started here despite its fence."""
    folder = migration.lxcpath / migration.name
    try:
        text = container_config.text_of(folder / "config")
    except FileNotFoundError:
        return False  # it was removed
    held = fences.holds(folder, text, migration.id) or (  # first, because it does not read any included files
        container_config.fence_of(text) == migration.id and fences.refuses(folder, text))
    return not held and origins.has_source_disk(migration)


def fence_anew(migration: Migration, text: str, said: str) -> bool:
    """On a destination: fence the container that has this configuration.

    Returns whether a removed fence was thereby put back, now or earlier in this boot.
    """
    folder = migration.lxcpath / migration.name
    held = container_config.fence_of(text) == migration.id and fences.refuses(folder, text)
    late = not held or is_put_back(migration)
    said += _disk(migration)
    container_config.fence(folder, text, migration.id, put_back(said) if late else said)
    return late


def put_back(said: str) -> str:
    """The message of a fence that an lxc-autostart which began earlier in this boot has not read."""
    return f"{said}\n{_PUT_BACK} {_boot()}."


def is_put_back(migration: Migration) -> bool:
    """Whether the fence was restored in this boot, so that an lxc-autostart which began earlier has not read it."""
    with contextlib.suppress(OSError):
        hook = migration.lxcpath / migration.name / container_config.FENCE_HOOK
        return f"{_PUT_BACK} {_boot()}" in hook.read_text(errors="replace")
    return False


def _boot() -> str:
    return boot_clock.BOOT_ID.read_text().strip()


def message(migration: Migration) -> str:
    """What the fence says to whoever tries to start the container."""
    if migration.state in (State.FINISHING, State.FINISHED):
        return (f"{migration.name} was migrated to {next_commands.moved_to(migration)} (migration {migration.id}) and"
                f" runs there. To get it back, migrate it from there. {container_config.SUPERSEDED}"
                f" {next_commands.command('cleanup', migration)}{_disk(migration)}")
    return (f"{migration.name} is being moved to {migration.begun.destination_host} (migration {migration.id}),"
            f" which may run it by now. See: {next_commands.command('status', migration)}")


def _disk(migration: Migration) -> str:
    """What a copy's fence says about its disk, for whoever removes it when nobody remembers the migration any more."""
    uuid = migration.copy.rootfs_uuid
    return f"\n{container_config.DISK} {uuid}." if uuid else ""


def runs(migration: Migration) -> bool:
    """Whether it runs here: either what was frozen or stopped, thawed by someone, or another start of it."""
    return remains.was_thawed(migration) or started_anew(migration)


def started_anew(migration: Migration) -> bool:
    """Whether a start other than the one that was frozen or stopped is alive here, even if LXC has lost track of it."""
    if _beside(migration) is not None:
        return True
    still = remains.first_is_here(migration)
    with contextlib.suppress(ContainerNotFound):  # it may have been started before its configuration was removed
        container = lxc.Container(migration.name, migration.lxcpath)
        if not origins.has_source_disk(migration):
            return False  # another container has its name
        init = remains.init_of(container)
        if init is not None:
            return not still or init.pid != migration.still.first[0]
        if not still and lxc.told_state(container) != "STOPPED":
            return True  # starting or stopping
    return remains.on_disk(migration) is not None


def _beside(migration: Migration) -> int | None:
    """PID 1 of another start that lives beside the frozen one, even if LXC does not know of it."""
    if not migration.memory or not remains.first_is_here(migration):
        return None
    return second_start.of(Frozen.on_record(migration.id, migration.name, migration.lxcpath, migration.still))


def _is_another(migration: Migration) -> bool:
    """As `_beside` while that is being ended: LXC's monitor may be about to exit, and then it counts for nothing."""
    if _beside(migration) is not None:
        return True
    with contextlib.suppress(ContainerNotFound):
        container = lxc.Container(migration.name, migration.lxcpath)
        if not origins.has_source_disk(migration):
            return False
        if remains.is_known(migration, container) is False:
            return True
    return remains.on_disk(migration) is not None
