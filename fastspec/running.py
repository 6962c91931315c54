"""A measurement under way: the moments of every layer and the loss, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastspec.batches import waits
from fastspec.measurement import Measurement
from fastspec.moments import CrossMoments
from fastspec.ops.backends import takes_triton
from fastspec.ops.checks import all_finite, check_finite, refuse
from fastspec.statistics import of_nodes

ROWS = 16  # samples whose squares are summed at once, before they go to float64: short rows are slow


class Running:
    """What has been measured so far.

    On a GPU NaN and infinity, which sums keep, are refused by `finish`, so that the host waits for nothing before.
    """

    def __init__(self) -> None:
        self.layers: dict[str, CrossMoments] = {}
        self.loss: Tensor | None = torch.zeros((), dtype=torch.float64)  # [*P], summed over the samples
        self.samples = 0

    def add(self, layer: str, moments: CrossMoments) -> None:
        """The moments of a layer, of a batch."""
        self.layers[layer] = self.layers[layer] + moments if layer in self.layers else moments

    def add_loss(self, place: str, teacher: Tensor, student: Tensor, bias: Tensor | None = None) -> None:
        """The loss of a batch of outputs, as `summed_loss`, unless `loss` is None."""
        if self.loss is not None:
            self.add_sum(summed_loss(place, teacher, student, bias))

    def add_sum(self, loss: Tensor) -> None:
        """A loss [*P] that is summed already."""
        assert self.loss is not None
        self.loss = self.loss + loss if self.samples else loss

    def unchecked(self) -> Iterator[Tensor]:
        """What must be finite at the end."""
        for moments in self.layers.values():
            if waits(moments.count.device):
                yield from of_nodes(moments)
        if self.loss is not None:
            yield self.loss

    def finish(self, finite: bool = False) -> Measurement:
        """The measurement; ValueError, naming the layer, for what was not finite, unless all is known to be."""
        for layer, moments in self.layers.items():
            if waits(moments.count.device) and not finite:
                try:
                    moments.check_finite()
                except ValueError as error:
                    raise ValueError(f"data, {layer}: {error}") from None
        if self.loss is not None and not finite:
            check_finite("data, loss", self.loss)
        return Measurement(self.layers, None if self.loss is None else self.loss / self.samples, self.samples)


def finish_all(parts: Sequence[Running]) -> list[Measurement]:
    """Each `finish`; a GPU is waited for once."""
    finite = all_finite(tensor for part in parts for tensor in part.unchecked())
    return [part.finish(finite) for part in parts]


def summed_loss(place: str, teacher: Tensor, student: Tensor, bias: Tensor | None = None) -> Tensor:
    """Sum over the samples of 1/2 ||teacher - student||^2 of outputs [samples, ...] and [*P, samples, ...], float64.

    bias: [P, outputs], what the students' outputs [P, samples, outputs] lack, where a GPU computes them.
    Residuals and their norms are computed in the dtype of the outputs, but at least in float32, and summed in float64.
    On a GPU, where nothing looks whether float32 is wide enough, they are float64; NaN and infinity are not refused.
    """
    if takes_triton(student):
        from fastspec.ops.gpu.squares import summed_squares

        return summed_squares(teacher, student, bias)
    student = student if bias is None else student + bias.unsqueeze(-2)
    if waits(student.device):
        return _sum_of_squares(teacher, student, torch.float64)
    loss = _sum_of_squares(teacher, student, torch.promote_types(student.dtype, torch.float32))
    if not loss.isfinite().all():
        loss = _sum_of_squares(teacher, student, torch.float64)  # squares beyond float32
    if not loss.isfinite().all():
        for side, output in (("teacher", teacher), ("student", student)):
            check_finite(f"{place}, outputs of the {side}", output)
        refuse(f"{place}, loss", "a sum beyond float64", "outputs of smaller scale")
    return loss


def _sum_of_squares(teacher: Tensor, student: Tensor, dtype: torch.dtype) -> Tensor:
    samples = student.dim() - teacher.dim()  # the axis
    residuals = student.to(dtype) - teacher.to(dtype)
    rows = residuals.unsqueeze(-1).flatten(samples + 1)
    if rows.shape[-2] % ROWS == 0:
        rows = rows.unflatten(-2, (-1, ROWS)).flatten(-2)
    return torch.linalg.vector_norm(rows, dim=-1).double().square().sum(-1) / 2
