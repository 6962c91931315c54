"""Fully connected networks measured layer by layer: each activation is computed once and feeds the layer above."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from fastspec.batches import Batch, Data, gather, read, waits
from fastspec.measurement import Measurement
from fastspec.moments import (
    CrossMoments,
    Layer,
    layer_moments_and_loss,
    layer_moments_with_activations,
    of_students,
)
from fastspec.ops.backends import takes_native
from fastspec.ops.checks import all_finite, check_finite, check_same_kind, check_tensor, refuse, shape
from fastspec.ops.precision import check_precision
from fastspec.running import Running, finish_all, summed_loss
from fastspec.workers import Spread

BATCH, GPU_BATCH = 8192, 131_072  # samples that are read at a time where the caller leaves it open, CPU: up to twice
BATCH_BYTES = 16 * 2**20  # of inputs, beyond which it is BATCH samples: workers wait for each other after each
ACTIVATION_BYTES = 64 * 2**20  # aimed at for the activations and outputs of a network at one time
SLAB_BYTES = 12 * 2**20  # the same for a slab of a population: one core works on it, and it stays in a cache
# Highest hidden nodes of a slab whose activations and outputs are not written, at most and at least: a task for every
# core, with nodes enough to pay for the teacher and for packing the inputs.
SLAB_NODES, FEWEST_SLAB_NODES = 2048, 512
FEWEST_SAMPLES = 256  # at a time: with fewer, neither matrix products nor merges are efficient
SLAB_SAMPLES = 1152  # at a time

GPU_BYTES = 256 * 2**20  # at most, for activations and outputs
GPU_SAMPLES, GPU_SLAB_SAMPLES = 8192, 12_288  # with fewer, merges of wide layers take as long as their products
GPU_STUDENTS = 16  # whose outputs are one product; slabs are filled up, so that no result depends on the company
GPU_OPERATIONS = 2 * 10**10  # of a layer: some .4 ms of a large GPU, as long as the host needs to ask for them


def measure_layers(
    teacher: Sequence[Layer],
    stacks: Sequence[Sequence[Layer]],
    data: Data,
    *,
    spread: Spread,
    batch_size: int | None,
    progress: bool | None,
    negative_slope: float,
    **options: Any,
) -> list[Measurement]:
    """One measurement for each stack of students, in one pass over the data.

    teacher: plain linear layers, lowest first; all but the last are followed by a ReLU. stacks: the same of the
    students, whose weights [P, out, in] and biases [P, out] may have a population axis. At most `batch_size` samples go
    through at a time, fewer for wide networks; None is as many as suit the device. Populations are cut into slabs of
    students, the tasks of `spread`.
    On a GPU the host waits for nothing before the end, where NaN and infinity are refused.
    """
    _check_finite(teacher, stacks)
    for stack in stacks:
        _check_pair(teacher, stack)
    check_precision(options["precision"], teacher[0][0].dtype)
    options["negative_slope"] = negative_slope
    nodes = sum(stack[-2][0].shape[:-1].numel() for stack in stacks)
    nodes = min(SLAB_NODES, max(FEWEST_SLAB_NODES, nodes // spread.threads))
    passes = []
    for stack in stacks:
        fused = nodes if _fused(stack, options["grams"]) else 0
        passes.append([_Pass(teacher, slab, fused > 0, options) for slab in _slabs(stack, fused)])
    slabs = [slab for stack in reversed(passes) for slab in stack]  # the widest first, for an even end
    weight = teacher[0][0]

    def check(place: str, x: Tensor) -> None:
        check_tensor(place, x, (2,), f"[samples, {weight.shape[1]}]")
        check_same_kind(**{"the networks": weight, place: x})
        if x.shape[1] != weight.shape[1]:
            refuse(place, shape(x), f"[samples, {weight.shape[1]}], the inputs of the networks")

    samples = batch_size or _batch_size(weight)
    for batch in gather(read(data, samples, check, progress, weight.device), samples):
        spread(partial(_Pass.add, batch=batch), slabs)
    found = iter(finish_all([slab.running for stack in passes for slab in stack]))
    return [_side_by_side([next(found) for _ in stack]) for stack in passes]


class _Pass:
    """The running measurement of one teacher against one student, or one slab of students."""

    def __init__(self, teacher: Sequence[Layer], student: Sequence[Layer], fused: bool, options: dict[str, Any]):
        self.teacher, self.student, self.samples = teacher, student, _samples(teacher, student, fused)
        self.fused = fused
        weight = student[0][0]
        check = not waits(weight.device)
        self.together: int | None = None  # students of a product of outputs, on a GPU
        self.students: int | None = None  # those that are there, where more fill up the last product
        if not check and weight.dim() == 3:
            self.together = _together(student)
            if len(weight) % self.together:
                self.students = len(weight)
                self.student = [_filled(layer, self.together) for layer in student]
        self.options = {"check": check, **options}
        self.running = Running()

    def add(self, batch: Batch) -> None:
        for x in batch.x.split(self.samples):
            self._add(x, batch.place)

    def _add(self, x: Tensor, place: str) -> None:
        pair = x, x  # teacher [samples, inputs], student [*P, samples, inputs] from the second layer on
        for i in range(len(self.teacher) - 1):
            name = f"hidden{i + 1}"
            try:
                if self.fused and i == len(self.teacher) - 2:
                    moments, loss = self._top(pair)
                    break
                moments, pair = layer_moments_with_activations(pair, self.teacher[i], self.student[i], **self.options)
            except ValueError as error:
                raise ValueError(f"{place}, {name}: {error}") from None
            self.running.add(name, moments if self.students is None else moments[: self.students])
        if self.fused:
            self.running.add(name, moments)
            for k in (~loss.isfinite()).nonzero().flatten().tolist():  # squares beyond the dtype
                loss[k] = self._loss_of(k, pair, place)
            self.running.add_sum(loss)
        else:
            self._add_outputs(pair, place)
        self.running.samples += len(x)

    def _top(self, pair: tuple[Tensor, Tensor]) -> tuple[CrossMoments, Tensor]:
        """Moments of the highest hidden layer, and the loss, in one pass."""
        (t, t_top), (s, s_top) = self.teacher[-2:], self.student[-2:]
        slope, coactivation = self.options["negative_slope"], self.options["coactivation"]
        return layer_moments_and_loss(pair, (t, t_top), (s, s_top), negative_slope=slope, coactivation=coactivation)

    def _loss_of(self, k: int, pair: tuple[Tensor, Tensor], place: str) -> Tensor:
        """The loss of student k alone, by its activations and outputs, in float64 where need be."""
        student = [(w[k], None if b is None else b[k]) for w, b in self.student[-2:]]
        loss = torch.zeros((), dtype=torch.float64)
        for t, s in zip(pair[0].split(SLAB_SAMPLES), _own(pair[1], k).split(SLAB_SAMPLES), strict=True):
            _, hidden = layer_moments_with_activations((t, s), self.teacher[-2], student[0], **self.options)
            loss += summed_loss(place, linear(hidden[0], *self.teacher[-1]), linear(hidden[1], *student[1]))
        return loss

    def _add_outputs(self, pair: tuple[Tensor, Tensor], place: str) -> None:
        """The loss of the outputs above the highest activations."""
        answers, (weight, bias) = linear(pair[0], *self.teacher[-1]), self.student[-1]
        if weight.dim() == 2:
            self.running.add_loss(place, answers, linear(pair[1], weight, bias))
        else:
            products = _products(pair[1], weight, self.together or 1)[: self.students]
            self.running.add_loss(place, answers, products, None if bias is None else bias[: self.students])


def _own(x: Tensor, k: int) -> Tensor:
    """The inputs of student k among those of a population, or of all."""
    return x[k] if x.dim() == 3 else x


def _products(x: Tensor, weight: Tensor, students: int) -> Tensor:
    """[P, samples, outputs] without biases, a whole number of `students` at a time: one product takes another way than
    two."""
    out = x.new_empty(len(weight), x.shape[-2], weight.shape[-2])
    for k in range(0, len(weight), students):
        some = slice(k, k + students)
        torch.bmm(x[some], weight[some].mT, out=out[some])
    return out


def _batch_size(weight: Tensor) -> int:
    """Samples that are read at a time, for a lowest layer `weight`."""
    most, held = (GPU_BATCH, GPU_BYTES) if waits(weight.device) else (2 * BATCH, BATCH_BYTES)
    return min(most, max(BATCH, held // (weight.shape[1] * weight.element_size())))


def _fused(stack: Sequence[Layer], grams: bool) -> bool:
    """Whether the highest activations and the outputs of a stack are not written: of populations on the CPU."""
    weight = stack[0][0]
    on_cpu = weight.dim() == 3 and not waits(weight.device) and weight.dtype in (torch.float32, torch.float64)
    return on_cpu and takes_native(weight) and not grams


def _slabs(stack: Sequence[Layer], fused: int = 0) -> list[list[Layer]]:
    """The students of a stack in slabs of about one size: those whose activations stay in a core's cache, as many as
    have `fused` nodes if they are not written, or as many as a GPU is to hold."""
    weight = stack[0][0]
    if weight.dim() == 2:
        return [list(stack)]
    together = _together(stack) if waits(weight.device) else 1  # slabs have a whole number of so many
    units = math.ceil(len(weight) / together)
    most = _fitting(stack, fused) // together
    each = math.ceil(units / math.ceil(units / most)) * together
    return [
        [(w[k : k + each], None if b is None else b[k : k + each]) for w, b in stack]
        for k in range(0, len(weight), each)
    ]


def _fitting(stack: Sequence[Layer], fused: int = 0) -> int:
    """How many students a slab may have."""
    on_gpu = waits(stack[0][0].device)
    samples, most = (GPU_SLAB_SAMPLES, GPU_BYTES) if on_gpu else (SLAB_SAMPLES, SLAB_BYTES)
    if not fused:
        return max(1, most // (samples * _bytes(stack)))
    nodes, written = max(1, stack[-2][0].shape[-2]), _bytes(stack[:-2])
    return max(1, min(fused // nodes, most // (samples * written) if written else fused))


def _together(stack: Sequence[Layer]) -> int:
    """How many students' outputs are one product on a GPU: a rule of their widths alone."""
    return int(2 ** (min(_fitting(stack), GPU_STUDENTS).bit_length() - 1))


def _filled(layer: Layer, students: int) -> Layer:
    """The weights of a layer [P, ...] with zeros for more students, up to a whole number of `students`."""
    weight, bias = layer
    missing = -len(weight) % students
    return pad(weight, (0, 0, 0, 0, 0, missing)), None if bias is None else pad(bias, (0, 0, 0, missing))


def _samples(teacher: Sequence[Layer], stack: Sequence[Layer], fused: bool = False) -> int:
    """How many samples go through a stack at a time: all of a batch where no activation is written.

    On a GPU as few as keep it at work, so that most of a layer is still in the second-level cache (50 MB on an H200)
    when the next one reads it; what does not fit there costs less than a device that waits for the host.
    """
    weight = stack[0][0]
    if len(stack) == 2 and fused:
        return 2**62
    if weight.dim() == 3:
        return GPU_SLAB_SAMPLES if waits(weight.device) else SLAB_SAMPLES
    if not waits(weight.device):
        return max(FEWEST_SAMPLES, ACTIVATION_BYTES // _bytes(stack))
    busy = GPU_OPERATIONS * (len(stack) - 1) // _operations(teacher, stack)
    return max(FEWEST_SAMPLES, min(max(GPU_SAMPLES, busy), GPU_BYTES // _bytes(stack)))


def _operations(teacher: Sequence[Layer], student: Sequence[Layer]) -> int:
    """Of one sample: both networks' layers, and the cross products of the hidden ones."""
    layers = sum(weight.numel() for weight, _ in (*teacher, *student))
    return 2 * (layers + sum(len(t) * len(s) for (t, _), (s, _) in zip(teacher[:-1], student[:-1], strict=True)))


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
        whole = {field: torch.cat([part[field] for part in parts]) for field in parts[0] if of_students(field)}
        layers[name] = CrossMoments(**{**first.tensors(), **whole})
    return Measurement(layers, torch.cat([_present(slab.loss) for slab in slabs]), slabs[0].samples)


def _present(loss: Tensor | None) -> Tensor:
    assert loss is not None
    return loss


def _check_finite(teacher: Sequence[Layer], stacks: Sequence[Sequence[Layer]]) -> None:
    networks = [("teacher", teacher), *(("student", stack) for stack in stacks)]
    for side, layers in networks:
        if len(layers) < 2:
            refuse(side, "a network without hidden layers", "at least one hidden layer")
    named = [
        (f"{side}, {what} of layer {i + 1}", tensor)
        for side, layers in networks
        for i, layer in enumerate(layers)
        for what, tensor in zip(("weight", "bias"), layer, strict=True)
        if tensor is not None
    ]
    if not all_finite(tensor for _, tensor in named):
        for name, tensor in named:
            check_finite(name, tensor)


def _check_pair(teacher: Sequence[Layer], student: Sequence[Layer]) -> None:
    check_same_kind(teacher=teacher[0][0], student=student[0][0])
    if len(teacher) != len(student):
        refuse("student", f"{len(student) - 1} hidden layers", f"the depth of the teacher, {len(teacher) - 1}")
    for what, layer, axis in (("inputs", 0, -1), ("outputs", -1, -2)):
        mine, wanted = student[layer][0].shape[axis], teacher[layer][0].shape[axis]
        if mine != wanted:
            refuse("student", f"{mine} {what}", f"the {what} of the teacher, {wanted}")
