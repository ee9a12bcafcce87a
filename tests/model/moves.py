# SPDX-License-Identifier: GPL-2.0-or-later
"""Both hosts together, as a model that `tests.model.explorer` searches completely.

It moves by the very functions of `migrator.record.states` that the program moves by, and knows beside them which
records are written in which order around which acts and messages: those of the source are in `source_programs` and
`programs`, those of the destination in `destination_answers` and `destination_commands`. Keep them in step with
stages/*.py. What can happen at any moment:

  - a message arrives late, from a connection that is long gone, and more than once; an answer is lost
  - the program on either host is killed between any two steps, each durable write being one
  - either host is rebooted: processes and memory are gone, images that lay in memory too (or not: they lay on disk)
  - somebody types any command on either host, or starts the container with LXC wherever no fence stands
  - the destination is lost, a rollback is forced on the source, and the destination comes back after all, at any
    moment, also in the middle of that: rebooted, or as a machine that stood still as a whole and goes on, with all that
    lay in its pipes, and with a restore under way. Its clock has gone on meanwhile: what the source had said holds no
    longer there than here. Of a virtual machine whose clock stood still with it that is not so, see docs/states.md
  - the destination is lost with its journal alone, or was installed anew, and answers that it knows of nothing; while
    the container runs there it says that, and the source's copy can be ended by force
  - a command is interrupted while it waits for an answer; the destination ends a migration by itself, whose source is
    lost for good
  - a rollback asks another host, as after a wrong -d: it has never heard of the migration, or only of an earlier round
  - somebody makes a container of that name on the destination, where none is or in the place of ours, or removes his;
    what has run there he may destroy as long as the source's copy is not being ended. Between the destination's word
    that it is there and the record that it is, nobody can keep him from that
  - the disk with the LXC path is not there on the destination for a while, as after a boot without it: what lies on it
    is not to be seen, and cannot be started, and all of it is there again at any moment
  - somebody takes the fence away from what a restore has let run; LXC's monitor ends, and what it held runs on. On the
    source no rule hangs on the monitor
  - somebody thaws what stands still on the source, or takes its fence away, so that it can be started; but not while
    the source's word holds, nor where it may have run on the destination: for that nobody can make up
  - the container has stopped there in the boot in which it was let run, so that it may never have run, or a reboot has
    stopped it; and somebody takes its fence away there, before a rollback is forced: after that nobody can make up for
    it. That there is memory to lose is told here by what is frozen on the source when the restore is killed
  - what has given way on the destination is put back there, as where it was renamed and is renamed back, or loses its
    fence, and is started, before the source has heard that it has given way, or has recorded that it did: killed, it
    asks once more. After that nobody can make up for it
  - the source is lost, standing still behind its fence, `restore-dump` is forced on the destination, and the source
    comes back after all, at any moment: rebooted, or as it stood still. Its journal is never lost. Nobody can make up
    for one that had taken the token back and is silent, nor for a rollback that is forced there at the same time: such
    a one waits here until the forced restore may let nothing run any more, see `let_run_by_force`
  - the power fails on the destination right after a failed restore was recorded, before its disk had what was done:
    what may have run and was put aside is in its place again, with the mark. Not later: what an abandon has removed
    does not come back here

It does not have: snapshots that somebody deletes by hand, so that nothing on disk tells whose what is; that no look for
what lives finds anything of it, as none of its processes has its root in what was brought; a container that ends by
itself, but for who restores it; a journal that is an older one; the end by force of what stands still on the source, as
what had given way is back.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.model import destination_answers, destination_commands, programs, source_programs, source_word
from tests.model.around import rebooted_there
from tests.model.world import World


def moves(world: World) -> Iterator[tuple[str, World]]:
    """Everything that can happen next."""
    yield from source_programs.source_moves(world)
    if world.word:
        yield "the source's word is over", world._replace(word=False)
    if not world.gone:
        yield from destination_commands.destination_moves(world)
        for message in world.flying:
            for changed, _ in destination_answers.answers(world, message, leave=source_word.has_leave(world, message)):
                yield f"{message.request} arrives late", changed
    else:
        back = world._replace(gone=False)
        yield "the destination comes back", rebooted_there(back, images=True)._replace(flying=frozenset())
        yield "the destination goes on", programs.kept(back)
