"""The progress bar: who sees it, and what it says."""

from __future__ import annotations

import contextlib
import io
import sys

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from fastspec import progress
from fastspec.measure import measure
from fastspec.networks import MLP


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(params=["rich", "plain"])
def stderr(request, monkeypatch) -> io.StringIO:
    """A terminal in place of stderr, with and without rich."""
    if request.param == "rich":
        pytest.importorskip("rich")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")
    else:
        monkeypatch.setitem(sys.modules, "rich", None)
    return Terminal()


def run(stderr: io.StringIO, data: object, show: bool | None) -> None:
    with contextlib.redirect_stderr(stderr):
        measure(MLP([4, 3, 2]), MLP([4, 5, 2], seed=1), data, progress=show)


def test_shown_when_asked_for(stderr) -> None:
    run(stderr, torch.randn(10_000, 4), True)
    assert "measuring" in stderr.getvalue() and "10,000 of 10,000 samples" in stderr.getvalue()


def test_short_work_shows_nothing_by_itself(stderr, monkeypatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 3600.0)
    run(stderr, torch.randn(10, 4), None)
    assert stderr.getvalue() == ""


def test_long_work_shows_itself_on_a_terminal(stderr, monkeypatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    run(stderr, torch.randn(10, 4), None)
    assert "10 of 10 samples" in stderr.getvalue()


def test_never_by_itself_elsewhere_and_never_when_refused(stderr, monkeypatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    run(stderr, torch.randn(10, 4), False)
    monkeypatch.setattr(stderr, "isatty", lambda: False)
    run(stderr, torch.randn(10, 4), None)
    assert stderr.getvalue() == ""


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.randn(6, 4))


def test_units_of_data_that_counts_batches_or_nothing(stderr) -> None:
    run(stderr, DataLoader(torch.randn(10, 4), batch_size=3), True)
    assert "4 of 4 batches" in stderr.getvalue()
    run(stderr, DataLoader(Stream(), batch_size=3), True)
    assert "6 samples" in stderr.getvalue()


def test_an_error_closes_the_bar(stderr, monkeypatch) -> None:
    closed = []
    for kind in (progress._RichBar, progress._PlainBar):
        close = kind.close
        monkeypatch.setattr(kind, "close", lambda bar, close=close: (closed.append(bar), close(bar)))
    with pytest.raises(ValueError, match="batch 1"):
        run(stderr, [torch.randn(3, 4), torch.full((3, 4), torch.nan)], True)
    assert len(closed) == 1
