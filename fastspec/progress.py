"""A progress bar on stderr for long work: rich where it is installed, one plain line where it is not."""

from __future__ import annotations

import sys
import time
from typing import Any

PATIENCE = 2.0  # seconds of work before a bar that nobody asked for appears
REFRESH = 0.2  # seconds between two plain lines


class Progress:
    """`with Progress("measuring", total, "samples", show) as bar: bar.advance(n)`.

    show: True at once, False never, None after two seconds and only when stderr is a terminal.
    total: the number of `unit`s of the whole work, or None when nobody knows.
    """

    def __init__(self, title: str, total: int | None = None, unit: str = "samples", show: bool | None = None):
        self.title, self.total, self.unit, self.done = title, total, unit, 0
        self._wanted = sys.stderr.isatty() if show is None else show
        self._start_at = time.monotonic() + (PATIENCE if show is None else 0.0)
        self._bar: _RichBar | _PlainBar | None = None

    def __enter__(self) -> Progress:
        self._draw()
        return self

    def advance(self, n: int) -> None:
        """Count `n` more units as done."""
        self.done += n
        self._draw()

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _draw(self) -> None:
        if not self._wanted or time.monotonic() < self._start_at:
            return
        if self._bar is None:
            self._bar = _new_bar(self.title, self.total, self.unit)
        self._bar.update(self.done)


def _new_bar(title: str, total: int | None, unit: str) -> _RichBar | _PlainBar:
    try:
        return _RichBar(title, total, unit)
    except ImportError:
        return _PlainBar(title, total, unit)


class _RichBar:
    def __init__(self, title: str, total: int | None, unit: str):
        from rich import progress
        from rich.console import Console

        columns: list[Any] = [progress.TextColumn("{task.description}"), progress.BarColumn()]
        columns += [progress.TextColumn(f"{{task.fields[count]}} {unit}"), progress.TimeRemainingColumn()]
        self._progress = progress.Progress(*columns, console=Console(file=sys.stderr), transient=True)
        self._task = self._progress.add_task(title, total=total, count=_count(0, total))
        self._total = total
        self._progress.start()

    def update(self, done: int) -> None:
        self._progress.update(self._task, completed=done, count=_count(done, self._total))

    def close(self) -> None:
        self._progress.stop()


class _PlainBar:
    def __init__(self, title: str, total: int | None, unit: str):
        self._title, self._total, self._unit = title, total, unit
        self._done, self._last = 0, -REFRESH

    def update(self, done: int) -> None:
        self._done = done
        if time.monotonic() - self._last >= REFRESH:
            self._write()

    def close(self) -> None:
        self._write()
        sys.stderr.write("\n")
        sys.stderr.flush()

    def _write(self) -> None:
        self._last = time.monotonic()
        sys.stderr.write(f"\r{self._title}: {_count(self._done, self._total)} {self._unit}")
        sys.stderr.flush()


def _count(done: int, total: int | None) -> str:
    return f"{done:,}" if total is None else f"{done:,} of {total:,}"
