"""Threads that run whole tasks, so that no result depends on their number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

Task = TypeVar("Task")


@dataclass(frozen=True)
class Spread:
    """Runs independent tasks, `threads` at a time."""

    threads: int
    pool: ThreadPoolExecutor | None = None

    def __call__(self, function: Callable[[Task], object], tasks: Iterable[Task]) -> None:
        """Return when all are done."""
        run = map if self.pool is None else self.pool.map
        for _ in run(torch.no_grad()(function), tasks):
            pass


one_by_one = Spread(1)


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
def workers(most: int) -> Iterator[Spread]:
    """What runs independent tasks on as many threads as torch has, but at most `most`, each task on one of
    them from its start to its end. Whatever else is done meanwhile is done on one thread: operations on small tensors
    take longer on several, and much longer on a busy machine. An error of a task is raised here. Autograd is off.
    """
    threads = min(most, torch.get_num_threads())
    with one_thread(), torch.no_grad(), ThreadPoolExecutor(threads) as pool:
        yield Spread(threads, pool) if threads > 1 else one_by_one
