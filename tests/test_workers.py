"""Tasks spread over threads: each has one thread of torch, and an error is not lost."""

from __future__ import annotations

import threading

import pytest
import torch

from fastspec.workers import one_by_one, workers


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_each_task_has_one_thread_and_no_autograd(three_threads):
    seen, together = [], threading.Barrier(3, timeout=30)

    def task(number):
        together.wait()  # passes only where three tasks run at a time
        seen.append((number, torch.get_num_threads(), torch.is_grad_enabled(), threading.get_ident()))

    with workers(10) as spread:
        spread(task, range(6))
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    numbers, threads, grad, identities = zip(*seen, strict=True)
    assert sorted(numbers) == list(range(6)) and set(threads) == {1} and set(grad) == {False}
    assert len(set(identities)) == 3


@pytest.mark.parametrize("most", [1, 4])
def test_an_error_of_a_task_is_raised(most, three_threads):
    def task(number):
        if number == 2:
            raise ValueError(f"task {number}")

    with pytest.raises(ValueError, match="task 2"), workers(most) as spread:
        spread(task, range(5))
    assert torch.get_num_threads() == 3


def test_one_task_runs_here(three_threads):
    seen = []
    with workers(1) as spread:
        assert spread is one_by_one
        spread(lambda number: seen.append(threading.get_ident()), [0])
    assert seen == [threading.get_ident()]
