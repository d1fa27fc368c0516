"""A pytest plugin: a skip is a failure where the environment was made for the tests."""

import os

import pytest

os.environ.setdefault("NUMBA_DISABLE_JIT", "1")  # before any tool: compiling takes ranx longer than all tests


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails a run in which a test was skipped, with how many."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", [])
    if skipped and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter.write_line(f"\n{len(skipped)} skipped, which is a failure here")
