"""What every error of this package looks like."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastspec.experiments.cli import main


def assert_clear(message: str, argument: str) -> None:
    """`message` is one line, "<argument>...: got ...; takes ..."."""
    assert "\n" not in message
    name, _, rest = message.partition(": got ")
    assert name.startswith(argument), message
    got, _, takes = rest.rpartition("; takes ")
    assert got and takes, message


def one_line_error(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What a refused command prints on stderr."""
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error
