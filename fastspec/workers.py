"""Threads that run whole tasks, so that no result depends on their number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Task = TypeVar("Task")
Spread = Callable[[Callable[[Task], object], Iterable[Task]], None]  # (function, tasks) -> nothing, when all are done


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def workers(tasks: int) -> Iterator[Spread]:
    """A function that runs independent tasks on as many threads as torch has, each task on one of them from its start
    to its end; a single task runs here, on all threads of torch.

    tasks: how many there are at one time. An error of a task is raised here. Autograd is off in tasks.
    """
    threads = min(tasks, torch.get_num_threads())
    if threads < 2:
        yield lambda function, items: _run(function, items, map)
        return
    with one_thread(), ThreadPoolExecutor(threads) as pool:
        yield lambda function, items: _run(function, items, pool.map)


def _run(function: Callable[[Task], object], items: Iterable[Task], over: Callable) -> None:
    def task(item: Task) -> None:
        with torch.no_grad():
            function(item)

    for _ in over(task, items):
        pass
