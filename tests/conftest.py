# SPDX-License-Identifier: GPL-2.0-or-later
"""What all tests share.

`MIGRATOR_TESTS=all` is `make test-all`: all cells of the fault matrix, many more examples, and the pages in docs/ that
tests write.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests import effort, equipment, selection

# An assert that fails in what tests share tells as much as one in a test.
pytest.register_assert_rewrite("harness", "tests.fuzz", "tests.migrator", "tests.rig", "tests.stages", "tests.tunnel")

# Tests that run side by side (pytest-xdist) have a rig each.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ["MIGRATOR_RIG"] = f"{os.environ.get('MIGRATOR_RIG') or 'test'}-{worker}"

ON_CI = os.environ.get("CI") == "true"

# How long an example takes to make or to run tells of the machine, not of the code.
settings.register_profile("ours", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ours")


@pytest.fixture(scope="session", autouse=True)
def the_tree_stays_as_it_is() -> Iterator[None]:
    """Pages in docs/ are written by `make test-all` alone. Looked at on CI, where nobody works on it meanwhile."""
    before = _as_git_sees_it()
    yield
    assert effort.ALL or not ON_CI or _as_git_sees_it() == before, f"the tests have changed files:\n{_as_git_sees_it()}"


def _as_git_sees_it() -> str:
    """Every change of a file that is known to it or would be added; nothing where it does not answer."""
    git = ["git", "-c", "safe.directory=*", "-C", str(equipment.TREE)]
    return "".join(subprocess.run([*git, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                                  check=False).stdout for words in (["status", "--porcelain"], ["diff", "HEAD"]))


# A shell that runs us in the background, or nohup, has these ignored, and whatever tests start would inherit that; a
# handler is not inherited (signal(7)).
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
for _number in (signal.SIGHUP, signal.SIGQUIT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)
_HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """main() sets them up for its process; after a test that calls it they are as they were."""
    before = {number: signal.getsignal(number) for number in _HANDLED}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.hookimpl(trylast=True)  # of what `-m` has left
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    selection.leave_out(config, items)


# --- with pytest-xdist the tests are collected by workers alone ----------------------------------------------------


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["named"] = node.config.args_source is pytest.Config.ArgsSource.ARGS


def pytest_sessionfinish(session: pytest.Session) -> None:
    getattr(session.config, "workeroutput", {})["left_out"] = session.config.stash.get(selection.LEFT_OUT, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[selection.LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Nobody shall take a part for the whole."""
    for line in config.stash.get(selection.LEFT_OUT, []):
        terminalreporter.write_line(line)


# --- on CI -----------------------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """On CI a test that could not run has failed."""
    report = yield
    if ON_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which counts as a failure on CI: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a whole module that would not be collected."""
    report = yield
    if ON_CI and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped, which counts as a failure on CI: {report.longrepr}"
    return report
