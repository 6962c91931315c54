"""Fully connected networks measured layer by layer: each activation is computed once and feeds the layer above."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastspec.batches import Batch, Data, gather, read, waits
from fastspec.measurement import Measurement
from fastspec.moments import CrossMoments, Layer, layer_moments_with_activations
from fastspec.ops.checks import check_finite, check_same_kind, check_tensor, refuse, shape
from fastspec.workers import Spread

ACTIVATION_BYTES = 64 * 2**20  # aimed at for the activations and outputs of a network at one time
GPU_BYTES = 32 * 2**20  # the same on a GPU: they stay in the second-level cache, 40 MB and more on the large ones
GPU_SAMPLES = 8192  # at a time for a slab of a population on a GPU: enough for all of it to have work
SLAB_BYTES = 4 * 2**20  # the same for a slab of a population: one core works on it, and it stays in the cache
FEWEST_SAMPLES = 256  # at a time: with fewer, neither matrix products nor merges are efficient
SLAB_SAMPLES = 1152  # at a time


def measure_layers(
    teacher: Sequence[Layer],
    stacks: Sequence[Sequence[Layer]],
    data: Data,
    *,
    spread: Spread,
    batch_size: int,
    progress: bool | None,
    negative_slope: float,
    **options: Any,
) -> list[Measurement]:
    """One measurement for each stack of students, in one pass over the data.

    teacher: plain linear layers, lowest first; all but the last are followed by a ReLU. stacks: the same of the
    students, whose weights [P, out, in] and biases [P, out] may have a population axis. At most `batch_size` samples go
    through at a time, fewer for wide networks. Populations are cut into slabs of students, the tasks of `spread`.
    On a GPU the host waits for nothing before the end, where NaN and infinity are refused.
    """
    _check_layers("teacher", teacher)
    for stack in stacks:
        _check_layers("student", stack)
        _check_pair(teacher, stack)
    passes = [[_Pass(teacher, slab, negative_slope, options) for slab in _slabs(stack)] for stack in stacks]
    slabs = [slab for stack in reversed(passes) for slab in stack]  # the widest first, for an even end
    weight = teacher[0][0]

    def check(place: str, x: Tensor) -> None:
        check_tensor(place, x, (2,), f"[samples, {weight.shape[1]}]")
        check_same_kind(**{"the networks": weight, place: x})
        if x.shape[1] != weight.shape[1]:
            refuse(place, shape(x), f"[samples, {weight.shape[1]}], the inputs of the networks")

    for batch in gather(read(data, batch_size, check, progress, weight.device), batch_size):
        spread(partial(_Pass.add, batch=batch), slabs)
    return [_side_by_side([slab.finish() for slab in slabs]) for slabs in passes]


class _Pass:
    """The running measurement of one teacher against one student, or one slab of students."""

    def __init__(
        self, teacher: Sequence[Layer], student: Sequence[Layer], negative_slope: float, options: dict[str, Any]
    ):
        self.teacher, self.student = teacher, student
        self.late = waits(teacher[0][0].device)  # checks come at the end
        self.options = {"negative_slope": negative_slope, "check": not self.late, **options}
        self.samples = 0
        self.moments: dict[str, CrossMoments] = {}
        self.loss = torch.zeros((), dtype=torch.float64, device=teacher[0][0].device)  # [*P], summed over the samples

    def add(self, batch: Batch) -> None:
        for x in batch.x.split(_samples(self.student)):
            self._add(x, batch.place)

    def _add(self, x: Tensor, place: str) -> None:
        pair = x, x  # teacher [samples, inputs], student [*P, samples, inputs] from the second layer on
        for i in range(len(self.teacher) - 1):
            name = f"hidden{i + 1}"
            try:
                moments, pair = layer_moments_with_activations(pair, self.teacher[i], self.student[i], **self.options)
            except ValueError as error:
                raise ValueError(f"{place}, {name}: {error}") from None
            self.moments[name] = self.moments[name] + moments if name in self.moments else moments
        outputs = [_linear(x, *layer) for x, layer in zip(pair, (self.teacher[-1], self.student[-1]), strict=True)]
        self.loss = self.loss + (
            sum_of_squares(outputs[0], outputs[1], torch.float64) if self.late else summed_loss(place, *outputs)
        )
        self.samples += len(x)

    def finish(self) -> Measurement:
        if self.late:
            for name, moments in self.moments.items():
                try:
                    moments.check_finite()
                except ValueError as error:
                    raise ValueError(f"data, {name}: {error}") from None
            check_finite("data, loss", self.loss)
        return Measurement(self.moments, self.loss / self.samples, self.samples)


def summed_loss(place: str, teacher: Tensor, student: Tensor) -> Tensor:
    """Sum over the samples of 1/2 ||teacher - student||^2 of outputs [samples, ...] and [*P, samples, ...], float64.

    Residuals and their norms are computed in the dtype of the outputs, but at least in float32, and summed in float64.
    """
    loss = sum_of_squares(teacher, student, torch.promote_types(student.dtype, torch.float32))
    if not loss.isfinite().all():
        loss = sum_of_squares(teacher, student, torch.float64)  # squares beyond float32
    if not loss.isfinite().all():
        for side, output in (("teacher", teacher), ("student", student)):
            check_finite(f"{place}, outputs of the {side}", output)
        refuse(f"{place}, loss", "a sum beyond float64", "outputs of smaller scale")
    return loss


def sum_of_squares(teacher: Tensor, student: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum of `summed_loss`, finite or not, with residuals in `dtype`."""
    samples = student.dim() - teacher.dim()  # the axis
    residual = student.to(dtype) - teacher.to(dtype)
    rows = residual.unsqueeze(-1).flatten(samples + 1)  # [*P, samples, outputs]
    return torch.linalg.vector_norm(rows, dim=-1).double().square().sum(-1) / 2


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [*P, samples, inputs], weight [*P, outputs, inputs], bias [*P, outputs] -> [*P, samples, outputs]."""
    if bias is None:
        return x @ weight.mT
    return (torch.addmm if weight.dim() == 2 else torch.baddbmm)(bias.unsqueeze(-2), x, weight.mT)


def _slabs(stack: Sequence[Layer]) -> list[list[Layer]]:
    """The students of a stack in slabs of about one size, whose activations stay in a core's cache, or a GPU's."""
    weight = stack[0][0]
    if weight.dim() == 2:
        return [list(stack)]
    samples, most = (GPU_SAMPLES, GPU_BYTES) if waits(weight.device) else (SLAB_SAMPLES, SLAB_BYTES)
    slabs = math.ceil(len(weight) * samples * _bytes(stack) / most)
    each = math.ceil(len(weight) / min(slabs, len(weight)))
    return [
        [(w[k : k + each], None if b is None else b[k : k + each]) for w, b in stack]
        for k in range(0, len(weight), each)
    ]


def _samples(stack: Sequence[Layer]) -> int:
    """How many samples go through a stack at a time."""
    weight = stack[0][0]
    if weight.dim() == 3:
        return GPU_SAMPLES if waits(weight.device) else SLAB_SAMPLES
    return max(FEWEST_SAMPLES, (GPU_BYTES if waits(weight.device) else ACTIVATION_BYTES) // _bytes(stack))


def _bytes(stack: Sequence[Layer]) -> int:
    """The bytes of one student's activations and outputs of one sample."""
    return sum(weight.shape[-2] * weight.element_size() for weight, _ in stack)


def _side_by_side(slabs: list[Measurement]) -> Measurement:
    """Measurements of one teacher against slabs of students as the measurement of all of them."""
    if len(slabs) == 1:
        return slabs[0]
    layers = {}
    for name, first in slabs[0].layers.items():
        parts = [slab.layers[name].tensors() for slab in slabs]
        whole = {field: torch.cat([part[field] for part in parts]) for field in parts[0] if _of_students(field)}
        layers[name] = CrossMoments(**{**first.tensors(), **whole})
    return Measurement(layers, torch.cat([_present(slab.loss) for slab in slabs]), slabs[0].samples)


def _of_students(field: str) -> bool:
    return field.startswith(("student_", "cross_")) or field == "coactive"


def _present(loss: Tensor | None) -> Tensor:
    assert loss is not None
    return loss


def _check_layers(side: str, layers: Sequence[Layer]) -> None:
    if len(layers) < 2:
        refuse(side, "a network without hidden layers", "at least one hidden layer")
    for i, (weight, bias) in enumerate(layers):
        check_finite(f"{side}, weight of layer {i + 1}", weight)
        if bias is not None:
            check_finite(f"{side}, bias of layer {i + 1}", bias)


def _check_pair(teacher: Sequence[Layer], student: Sequence[Layer]) -> None:
    check_same_kind(teacher=teacher[0][0], student=student[0][0])
    if len(teacher) != len(student):
        refuse("student", f"{len(student) - 1} hidden layers", f"the depth of the teacher, {len(teacher) - 1}")
    for what, layer, axis in (("inputs", 0, -1), ("outputs", -1, -2)):
        mine, wanted = student[layer][0].shape[axis], teacher[layer][0].shape[axis]
        if mine != wanted:
            refuse("student", f"{mine} {what}", f"the {what} of the teacher, {wanted}")
