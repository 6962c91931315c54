"""What a run says while it works: a bar on a terminal, a plain line now and then elsewhere; and Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Advance = Callable[[int, int], None]  # called with (done, total)
QUIET_SECONDS = 10.0  # between two plain lines


class Console:
    """Stages of work, and the wish to stop.

    quiet: say nothing at all. Where stderr is not a terminal, plain lines take the place of bars.
    """

    def __init__(self, *, quiet: bool = False):
        self.quiet = quiet
        self._stop = False

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Ctrl-C stops at the next safe point, where all finished work is saved; a second one stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: FrameType | None) -> None:
            if self._stop:
                raise KeyboardInterrupt
            self._stop = True

        before = signal.signal(signal.SIGINT, ask)
        try:
            yield
            self._safe_point()
        finally:
            self._stop = False
            signal.signal(signal.SIGINT, before)

    @contextmanager
    def stage(self, title: str, unit: str = "steps") -> Iterator[Advance]:
        """A stage of work; the function it yields takes (done, total), and is a safe point to stop at."""
        start, bar = time.monotonic(), _bar(title, unit, quiet=self.quiet)

        def advance(done: int, total: int) -> None:
            bar(done, total)
            self._safe_point()

        with bar:
            self._safe_point()
            yield advance
        self.say(f"{title}: {time.monotonic() - start:.1f} s")

    def _safe_point(self) -> None:
        if self._stop:
            self._stop = False
            raise KeyboardInterrupt


def _bar(title: str, unit: str, *, quiet: bool) -> _NoBar:
    if quiet:
        return _NoBar()
    return _RichBar(title) if sys.stderr.isatty() else _PlainBar(title, unit)


class _NoBar:
    def __call__(self, done: int, total: int) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class _PlainBar(_NoBar):
    def __init__(self, title: str, unit: str):
        self._title, self._unit = title, unit
        self._first: tuple[float, int] | None = None
        self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        self._first = self._first or (now, done)
        if now - self._last < QUIET_SECONDS or done >= total:
            return
        self._last = now
        start, begun = self._first
        left = f", about {(now - start) * (total - done) / (done - begun):.0f} s left" if done > begun else ""
        print(f"{self._title}: {done:,} of {total:,} {self._unit}{left}", file=sys.stderr, flush=True)


class _RichBar(_NoBar):
    def __init__(self, title: str):
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=RichConsole(stderr=True), transient=True)
        self._task = self._progress.add_task(title, total=None)

    def __call__(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total)

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
