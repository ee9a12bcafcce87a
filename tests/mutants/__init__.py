# SPDX-License-Identifier: GPL-2.0-or-later
"""Would a test notice, were this line wrong? Each line that a promise hangs on is made wrong, and the tests are run.

    python -m tests.mutants           all of it, as `make test-mutants` does; writes the table in docs/reliability.md
    python -m tests.mutants journal   the modules with that in their names; writes nothing

mutmut makes the mutants and runs the tests. What is ours is which (`where`), what more is made wrong than it knows of
(`operators`), and which may survive, with the reason (`explained`): every other survivor fails the run.

A mutant of code that deletes and kills as root is not to be let loose on a machine: see `confined`.
"""
