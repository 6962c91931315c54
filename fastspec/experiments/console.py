"""What a run says while it works: a bar on a terminal, a plain line now and then elsewhere; and Ctrl-C."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
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
        start, left = time.monotonic(), TimeLeft()
        with _bar(quiet=self.quiet) as bar:

            def advance(done: int, total: int) -> None:
                bar(title, f"{done:,} of {total:,} {unit}", done / total, left(done, total))
                self._safe_point()

            self._safe_point()
            yield advance
        self.say(f"{title}: {time.monotonic() - start:.1f} s")

    @contextmanager
    def study(self, costs: Mapping[str, float]) -> Iterator[Study]:
        """Jobs, by title, whose costs are in one unit: one bar, and one estimate of the time left, for all of them."""
        with _bar(quiet=self.quiet) as bar:
            yield Study(self, bar, costs)

    def _safe_point(self) -> None:
        if self._stop:
            self._stop = False
            raise KeyboardInterrupt


class TimeLeft:
    """Seconds left, from the pace since the first report: what was found done before has told nothing."""

    def __init__(self) -> None:
        self._start, self._begun = time.monotonic(), math.nan

    def __call__(self, done: float, total: float) -> float | None:
        if math.isnan(self._begun):
            self._start, self._begun = time.monotonic(), done
        if done <= self._begun:
            return None
        return (time.monotonic() - self._start) * (total - done) / (done - self._begun)


class Study:
    """The jobs of a study under way."""

    def __init__(self, console: Console, bar: _NoBar, costs: Mapping[str, float]):
        self._console, self._bar, self._costs = console, bar, costs
        self._left, self._ahead = TimeLeft(), sum(costs.values())  # cost of this job and those after it
        self._found = 0.0  # cost of steps that earlier runs had made
        self._total = self._ahead

    def found(self, job: str) -> None:
        """A job that an earlier run has finished."""
        self._ahead -= self._costs[job]
        self._found += self._costs[job]

    @contextmanager
    def job(self, job: str) -> Iterator[Advance]:
        """A job; the function it yields takes (done, total) steps, and is a safe point to stop at."""
        cost, resumed = self._costs[job], math.nan
        place = f"job {list(self._costs).index(job) + 1} of {len(self._costs)}, {job}"

        def advance(done: int, total: int) -> None:
            nonlocal resumed
            if math.isnan(resumed):
                resumed = cost * done / total
                self._found += resumed
            finished = self._total - self._ahead + cost * done / total
            left = self._left(finished - self._found, self._total - self._found)
            self._bar(
                place,
                f"step {done:,} of {total:,}, {100 * finished / self._total:.0f}% of the study",
                finished / self._total,
                left,
            )
            self._console._safe_point()

        self._console._safe_point()
        yield advance
        self._ahead -= cost


def _bar(*, quiet: bool) -> _NoBar:
    if quiet:
        return _NoBar()
    return _RichBar() if sys.stderr.isatty() else _PlainBar()


def _about(left: float | None) -> str:
    if left is None:
        return ""
    return f", about {left:.0f} s left" if left < 120 else f", about {left / 60:.0f} min left"


class _NoBar:
    def __call__(self, title: str, count: str, share: float, left: float | None) -> None:
        pass

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _PlainBar(_NoBar):
    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, title: str, count: str, share: float, left: float | None) -> None:
        if time.monotonic() - self._last < QUIET_SECONDS or share >= 1:
            return
        self._last = time.monotonic()
        print(f"{title}: {count}{_about(left)}", file=sys.stderr, flush=True)


class _RichBar(_NoBar):
    def __init__(self) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"))
        self._progress = Progress(*columns, console=RichConsole(stderr=True), transient=True)
        self._task = self._progress.add_task("", total=1, count="")

    def __call__(self, title: str, count: str, share: float, left: float | None) -> None:
        self._progress.update(self._task, completed=share, description=title, count=f"{count}{_about(left)}")

    def __enter__(self) -> _RichBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
