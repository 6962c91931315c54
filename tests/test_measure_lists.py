"""`measure` of a list of students of one shape."""

from __future__ import annotations

import pytest
import torch

from fastspec.measure import measure
from fastspec.networks import MLP


def test_a_list_of_students_is_each_of_them():
    teacher = MLP([5, 4, 3, 2], seed=0, dtype=torch.float64)
    students = [MLP([5, 8, 6, 2], seed=k, dtype=torch.float64) for k in (1, 2, 3)]
    x = torch.randn(300, 5, dtype=torch.float64)
    together = measure(teacher, students, x, coactivation=True)
    assert together.population == 3
    for k, student in enumerate(students):
        alone, mine = measure(teacher, student, x, coactivation=True), together.student(k)
        torch.testing.assert_close(mine.loss, alone.loss)
        for name, moments in alone.layers.items():
            torch.testing.assert_close(mine.layers[name].tensors(), moments.tensors())
    assert f"medians over the students, loss {together.loss.median():.4g}" in str(together)


@pytest.mark.parametrize(
    "students",
    [
        [],
        [MLP([5, 4, 2]), MLP([5, 3, 2])],
        [MLP([5, 4, 2]), torch.nn.Linear(5, 2)],
        [MLP([5, 4, 2], negative_slope=0.1)],
        [MLP([5, 4, 2]), MLP([5, 4, 2], bias=False)],
    ],
)
def test_lists_that_cannot_be_measured_together(students):
    with pytest.raises((ValueError, TypeError), match=r"^student: got .*; takes "):
        measure(MLP([5, 4, 2]), students, torch.zeros(9, 5))
