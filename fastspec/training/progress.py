"""A progress bar where rich is installed, a function of one's own, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[int, int], object]  # called with (step, steps)


@contextmanager
def progress_bar(progress: bool | Report, steps: int, start: int) -> Iterator[Report]:
    """Yield the function that is called after every group of steps with (step, steps)."""
    if callable(progress):
        yield progress
        return
    try:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        progress = False
    if not progress:
        yield lambda step, steps: None
        return
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("training", total=steps, completed=start)
        yield lambda step, steps: bar.update(task, completed=step)
