"""A pytest plugin: tests that no longer fit in the time are skipped, and every outcome is in a file at once."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

LEFT_OUT = "left out: the time is over"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--until", type=float, default=float("inf"), help="begin no test after this time")
    parser.addoption("--outcomes", help="file of one JSON line for each test that passed, failed or was skipped")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.time() > item.config.getoption("--until"):
        pytest.skip(LEFT_OUT)


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--outcomes")
    if path and not hasattr(config, "workerinput"):  # the workers of xdist report to their controller
        config.pluginmanager.register(_Outcomes(Path(path)))


class _Outcomes:
    def __init__(self, path: Path):
        self.path = path
        path.write_text("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        why = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr or "")
        line = {"test": report.nodeid, "outcome": report.outcome, "seconds": report.duration, "why": why[-2000:]}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
