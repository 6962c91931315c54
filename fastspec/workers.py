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


def one_by_one(function: Callable[[Task], object], tasks: Iterable[Task]) -> None:
    """Run tasks here, one after the other."""
    for task in tasks:
        function(task)


@contextmanager
def workers(most: int) -> Iterator[Spread]:
    """A function that runs independent tasks on as many threads as torch has, but at most `most`, each task on one of
    them from its start to its end. Whatever else is done meanwhile is done on one thread: operations on small tensors
    take longer on several, and much longer on a busy machine. An error of a task is raised here. Autograd is off.
    """
    threads = min(most, torch.get_num_threads())
    with one_thread(), torch.no_grad(), ThreadPoolExecutor(threads) as pool:

        def spread(function: Callable[[Task], object], tasks: Iterable[Task]) -> None:
            for _ in pool.map(torch.no_grad()(function), tasks):
                pass

        yield spread if threads > 1 else one_by_one
