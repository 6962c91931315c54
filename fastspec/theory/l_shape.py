"""The L-shape: how much like a teacher node a student node is, against what it still adds to the outputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from fastspec.batches import Data
from fastspec.measure import measure
from fastspec.ops.checks import refuse
from fastspec.theory.backward import backward_gram


class LShape(NamedTuple):
    """The nodes of one hidden layer of a student, float64 [nodes] each."""

    correlation: Tensor  # the largest with a teacher node; NaN for a constant node
    strength: Tensor  # sqrt(E beta_kk), the norm of the fan-out where no hidden layer is above


def l_shape(
    teacher: nn.Module,
    student: nn.Module,
    data: Data,
    *,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> dict[str, LShape]:
    """Where the nodes of every hidden layer are in the L-shape of Student Specialization (Tian, ICML 2020).

    Trained wide students have nodes that correlate with a teacher node, and nodes of little strength, but few others.
    Networks and data as in `backward_gram`; the data are read twice, so that an iterator that ends is refused.
    Raises ValueError or TypeError as `backward_gram` and `fastspec.measure` do.
    """
    if isinstance(data, Iterator):
        refuse(
            "data", f"a {type(data).__name__}, which can be read once", "a tensor, a DataLoader or a list", TypeError
        )
    measured = measure(teacher, student, data, batch_size=batch_size, progress=progress)
    grams = backward_gram(teacher, student, data, batch_size=batch_size, progress=progress)
    return {name: LShape(measured.layers[name].best_teacher().values, gram.strength()) for name, gram in grams.items()}
