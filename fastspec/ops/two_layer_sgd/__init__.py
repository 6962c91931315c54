"""Op `two_layer_sgd`: many SGD steps of many two-layer students, of any widths, in one call."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fastspec.ops import library
from fastspec.ops.checks import check_finite, check_integer, check_real, check_same_kind, check_tensor, refuse, shape
from fastspec.ops.philox import MAX_SAMPLES
from fastspec.ops.two_layer_sgd import reference


class Packed(NamedTuple):
    """The weights (or momentum buffers) of P students whose hidden nodes lie one student after the other."""

    w1: Tensor  # [nodes, d] fan-in of every hidden node
    b1: Tensor  # [nodes]
    w2: Tensor  # [nodes, C] fan-out of every hidden node
    b2: Tensor  # [P, C]


class Fresh(NamedTuple):
    """New inputs N(0, std^2 I) for every step, and the two-layer teacher that answers them."""

    teacher: Packed  # of one network: w1 [m, d], b1 [m], w2 [m, C], b2 [1, C]
    std: float


class Trained(NamedTuple):
    """What `two_layer_sgd` returns."""

    weights: Packed
    buffers: Packed | None  # momentum buffers; None without momentum
    diverged_step: Tensor  # [P] int64, -1 for a student that did not diverge


def _fake(
    x: Tensor,
    y: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    offsets: Tensor,
    lr: Tensor,
    seeds: Tensor,
    diverged_step: Tensor,
    w1_buffer: Tensor | None,
    b1_buffer: Tensor | None,
    w2_buffer: Tensor | None,
    b2_buffer: Tensor | None,
    indices: Tensor | None,
    multipliers: Tensor | None,
    teacher_w1: Tensor | None,
    teacher_b1: Tensor | None,
    teacher_w2: Tensor | None,
    teacher_b2: Tensor | None,
    fresh_std: float,
    batch_size: int,
    first_step: int,
    steps: int,
    momentum: float,
    *rest: object,
) -> tuple[Tensor, ...]:
    weights = [t.new_empty(t.shape) for t in (w1, b1, w2, b2)]
    buffers = [t.new_empty(t.shape if momentum else (0,)) for t in weights]
    return *weights, *buffers, diverged_step.new_empty(diverged_step.shape)


library.define(
    "two_layer_sgd",
    "(Tensor x, Tensor y, Tensor w1, Tensor b1, Tensor w2, Tensor b2, Tensor offsets, Tensor lr, Tensor seeds, "
    "Tensor diverged_step, Tensor? w1_buffer, Tensor? b1_buffer, Tensor? w2_buffer, Tensor? b2_buffer, "
    "Tensor? indices, Tensor? multipliers, Tensor? teacher_w1, Tensor? teacher_b1, Tensor? teacher_w2, "
    "Tensor? teacher_b2, float fresh_std, int batch_size, int first_step, int steps, float momentum, "
    "float weight_decay, float negative_slope, float loss_limit, bool bias, bool normalize, bool fixed_first, "
    "bool fixed_top) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=reference.two_layer_sgd,
    fake=_fake,
    cuda="fastspec.ops.two_layer_sgd.cuda:two_layer_sgd",
)


def check_packed(argument: str, packed: Packed, students: int) -> None:
    """Check ranks, dtypes and sizes of a packed population against each other."""
    layouts = ((2, "[nodes, d]"), (1, "[nodes]"), (2, "[nodes, C]"), (2, "[students, C]"))
    for (name, tensor), (rank, layout) in zip(packed._asdict().items(), layouts, strict=True):
        check_tensor(f"{argument}.{name}", tensor, (rank,), layout)
    w1, b1, w2, b2 = packed
    check_same_kind(**{f"{argument}.{name}": tensor for name, tensor in packed._asdict().items()})
    nodes, outputs = w2.shape
    for name, tensor, size in (("w1", w1, (nodes, w1.shape[1])), ("b1", b1, (nodes,)), ("b2", b2, (students, outputs))):
        if tensor.shape != size:
            refuse(f"{argument}.{name}", shape(tensor), f"shape {list(size)}, the nodes and outputs of {argument}.w2")


def _check_table(argument: str, value: object, dtype: torch.dtype, size: tuple[int, ...], device: torch.device) -> None:
    if not isinstance(value, Tensor) or value.dtype != dtype:
        got = f"dtype {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        refuse(argument, got, f"a tensor of dtype {dtype}", TypeError)
    if value.shape != size:
        refuse(argument, shape(value), f"shape {list(size)}")
    if value.device != device:
        refuse(argument, f"device {value.device}", f"the device of x, {device}")


def check_indices(indices: object, students: int, steps: int, samples: int, device: torch.device) -> None:
    """Check explicit batches: int64 [steps, batch] for all, or [students, steps, batch], each in [0, samples)."""
    if not isinstance(indices, Tensor) or indices.dtype != torch.int64:
        got = f"dtype {indices.dtype}" if isinstance(indices, Tensor) else type(indices).__name__
        refuse("indices", got, "an int64 tensor", TypeError)
    batch = indices.shape[-1] if indices.dim() else 0
    if indices.shape not in ((steps, batch), (students, steps, batch)) or batch == 0:
        takes = f"shape [{steps}, batch] or [{students}, {steps}, batch], batch >= 1"
        refuse("indices", shape(indices), takes)
    if indices.device != device:
        refuse("indices", f"device {indices.device}", f"the device of x, {device}")
    if indices.numel() and not torch.compiler.is_compiling():
        low, high = (int(v) for v in indices.aminmax())
        if low < 0 or high >= samples:
            refuse("indices", f"values from {low} to {high}", f"sample numbers in [0, {samples})")


def _check_offsets(offsets: Tensor, nodes: int) -> None:
    if torch.compiler.is_compiling():
        return
    edges = offsets.tolist()
    if edges[0] != 0 or edges[-1] != nodes or any(a >= b for a, b in pairwise(edges)):
        refuse(
            "offsets",
            edges if len(edges) < 10 else f"{len(edges)} values",
            f"0 = first < .. < last = {nodes}, the nodes",
        )


def _check_fresh(
    fresh: Fresh, weights: Packed, x: Tensor | None, y: Tensor | None, indices: Tensor | None, batch_size: int
) -> None:
    """Check the teacher of fresh inputs against the students, and that nothing else says where samples come from."""
    for name, value in (("x", x), ("y", y), ("indices", indices)):
        if value is not None:
            refuse(name, "a tensor together with fresh inputs", "None", TypeError)
    check_packed("fresh.teacher", fresh.teacher, 1)
    check_same_kind(**{"weights": weights.w1, "fresh.teacher": fresh.teacher.w1})
    for name, mine, theirs in (("inputs", fresh.teacher.w1, weights.w1), ("outputs", fresh.teacher.w2, weights.w2)):
        if mine.shape[1] != theirs.shape[1]:
            refuse("fresh.teacher", f"{mine.shape[1]} {name}", f"the {theirs.shape[1]} {name} of the students")
    if not torch.compiler.is_compiling():
        for name, tensor in fresh.teacher._asdict().items():
            check_finite(f"fresh.teacher.{name}", tensor)
    check_real("fresh.std", fresh.std, "a finite positive number", math.ulp(0.0))
    check_integer("batch_size", batch_size, 1)


def check_rule(momentum: float, weight_decay: float, negative_slope: float, loss_limit: float) -> None:
    """Check the hyper-parameters that all students share."""
    check_real("momentum", momentum, "a number in [0, 1]", 0.0, 1.0)
    check_real("weight_decay", weight_decay, "a finite number >= 0", 0.0)
    check_real("negative_slope", negative_slope, "a number in [0, 1]", 0.0, 1.0)
    if not (isinstance(loss_limit, (int, float)) and loss_limit > 0):
        refuse("loss_limit", repr(loss_limit), "a number > 0, inf for none")


def two_layer_sgd(
    x: Tensor | None,
    y: Tensor | None,
    weights: Packed,
    offsets: Tensor,
    *,
    lr: Tensor,
    seeds: Tensor,
    steps: int,
    first_step: int = 0,
    batch_size: int = 0,
    indices: Tensor | None = None,
    multipliers: Tensor | None = None,
    fresh: Fresh | None = None,
    momentum: float = 0.0,
    buffers: Packed | None = None,
    diverged_step: Tensor | None = None,
    weight_decay: float = 0.0,
    negative_slope: float = 0.0,
    loss_limit: float = math.inf,
    bias: bool = True,
    normalize: bool = False,
    fixed_first: bool = False,
    fixed_top: bool = False,
) -> Trained:
    """`steps` steps of SGD on the mean over the batch of 1/2 ||y - f(x)||^2, for every student on its own.

    x [N, d], y [N, C]: float32 or float64, any strides; y are the teacher's outputs. Both None with `fresh`.
    weights: `Packed`, the same dtype and device; student k owns the nodes offsets[k] .. offsets[k + 1].
    offsets [P + 1], seeds [P] int64; lr [P] float64, at least 0; all on the device of x.
    The batch of step t (counted from 0; this call makes first_step .. first_step + steps - 1) is, with indices None,
    `batch_size` samples drawn with replacement from Philox stream (seed, BATCH, t), or all samples if batch_size is 0;
    otherwise indices int64 [steps, batch] or [P, steps, batch].
    fresh: instead of samples, `batch_size` new inputs for every step, from Philox stream (seed, FRESH, t), answered by
    fresh.teacher, whose negative slope is the students'.
    multipliers [steps] float64: factors on lr, or None.
    momentum, weight_decay: as in torch.optim.SGD (weight decay acts on biases too); buffers: `Packed`, None for zeros.
    normalize: after every step each node's fan-in, without its bias, is divided by its norm.
    fixed_first, fixed_top: leave w1 and b1, or w2 and b2, as they are. bias=False: biases take no part.
    A student stops at the step at which its batch loss exceeds `loss_limit` or is not finite, or after which a weight
    is not finite. It keeps the weights from before that step, its buffers are zero, and `diverged_step` says which
    step it was; students that have one >= 0 on entry are left alone.
    Returns `Trained`, new tensors. The result of a student does not depend, bitwise, on the other students, on the
    number of threads, or on how its steps are divided into calls.
    Raises ValueError or TypeError, naming the argument, for whatever does not fit.
    """
    students = len(weights.b2)
    check_packed("weights", weights, students)
    if fresh is not None:
        _check_fresh(fresh, weights, x, y, indices, batch_size)
        x, y = weights.w1.new_empty(0, weights.w1.shape[1]), weights.w2.new_empty(0, weights.w2.shape[1])
    check_tensor("x", x, (2,), "[samples, inputs]")
    check_tensor("y", y, (2,), "[samples, outputs]")
    assert x is not None and y is not None, "check_tensor refuses None"
    if x.dtype not in (torch.float32, torch.float64):
        refuse("x", f"dtype {x.dtype}", "float32 or float64", TypeError)
    check_same_kind(x=x, y=y, weights=weights.w1)
    if len(y) != len(x):
        refuse("y", shape(y), f"the samples of x, {shape(x)}")
    if weights.w1.shape[1] != x.shape[1]:
        refuse("weights.w1", shape(weights.w1), f"[nodes, {x.shape[1]}], the inputs of x")
    if weights.w2.shape[1] != y.shape[1]:
        refuse("weights.w2", shape(weights.w2), f"[nodes, {y.shape[1]}], the outputs of y")
    for name, value in (("steps", steps), ("first_step", first_step), ("batch_size", batch_size)):
        check_integer(name, value, 0)
    if fresh is None and not 1 <= len(x) <= MAX_SAMPLES:
        refuse("x", shape(x), "1 to 2^31 samples")
    if diverged_step is None:
        diverged_step = seeds.new_full((students,), -1) if isinstance(seeds, Tensor) else torch.empty(0)
    tables = (
        ("offsets", offsets, torch.int64, (students + 1,)),
        ("lr", lr, torch.float64, (students,)),
        ("seeds", seeds, torch.int64, (students,)),
        ("diverged_step", diverged_step, torch.int64, (students,)),
    )
    for name, table, dtype, size in tables:
        _check_table(name, table, dtype, size, x.device)
    _check_offsets(offsets, len(weights.w1))
    if multipliers is not None:
        _check_table("multipliers", multipliers, torch.float64, (steps,), x.device)
    if indices is not None:
        check_indices(indices, students, steps, len(x), x.device)
    check_rule(momentum, weight_decay, negative_slope, loss_limit)
    if not torch.compiler.is_compiling():
        for name, tensor in (("x", x), ("y", y), ("lr", lr), ("multipliers", multipliers)):
            if tensor is not None:
                check_finite(name, tensor)
        for name, tensor in weights._asdict().items():
            check_finite(f"weights.{name}", tensor)
        for name, tensor in (("lr", lr), ("multipliers", multipliers)):
            if tensor is not None and bool((tensor < 0).any()):
                refuse(name, f"{float(tensor.min())}", "numbers >= 0")
    if buffers is not None:
        check_packed("buffers", buffers, students)
    elif momentum:
        buffers = Packed(*(torch.zeros_like(t) for t in weights))
    out = torch.ops.fastspec.two_layer_sgd(
        x,
        y,
        *weights,
        offsets,
        lr,
        seeds,
        diverged_step,
        *(buffers if momentum and buffers is not None else (None,) * 4),
        indices,
        multipliers,
        *((None,) * 4 if fresh is None else fresh.teacher),
        0.0 if fresh is None else float(fresh.std),
        batch_size,
        first_step,
        steps,
        momentum,
        weight_decay,
        negative_slope,
        loss_limit,
        bias,
        normalize,
        fixed_first,
        fixed_top,
    )
    return Trained(Packed(*out[:4]), Packed(*out[4:8]) if momentum else None, out[8])
