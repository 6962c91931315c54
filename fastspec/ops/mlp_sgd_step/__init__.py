"""Op `mlp_sgd_step`: SGD steps of a deep ReLU network, or of many of one shape, in one call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastspec.ops import library
from fastspec.ops.checks import check_finite, check_integer, check_real, check_same_kind, check_tensor, refuse, shape
from fastspec.ops.mlp_sgd_step import in_place, reference
from fastspec.ops.mlp_sgd_step.reference import layers_of, parameter_count
from fastspec.ops.precision import check_precision

__all__ = ["Stepped", "layers_of", "mlp_sgd_step", "parameter_count"]


class Stepped(NamedTuple):
    """What `mlp_sgd_step` returns; `*P` is the population axis of the parameters, if they have one."""

    parameters: Tensor  # [*P, K]
    buffers: Tensor | None  # [*P, K] momentum buffers; None without momentum
    loss: Tensor  # [*P, steps] float64, of each batch before its step; NaN once a student has stopped
    gradient_norm: Tensor | None  # [*P, steps, layers] float64; None unless asked for
    diverged_step: Tensor  # [*P] int64, -1 for a student that did not diverge


def _fake(
    x: Tensor,
    y: Tensor,
    parameters: Tensor,
    buffers: Tensor | None,
    indices: Tensor,
    lr: Tensor,
    diverged_step: Tensor,
    widths: Sequence[int],
    bias: Sequence[bool],
    first_step: int,
    momentum: float,
    weight_decay: float,
    negative_slope: float,
    loss_limit: float,
    normalize: bool,
    gradient_norms: bool,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    *population, count = parameters.shape
    loss = x.new_empty((*population, indices.shape[-2]), dtype=torch.float64)
    norms = (*loss.shape, len(widths) - 1) if gradient_norms else (0,)
    return (
        parameters.new_empty(parameters.shape),
        parameters.new_empty((*population, count) if momentum else (0,)),
        loss,
        loss.new_empty(norms),
        diverged_step.new_empty(diverged_step.shape),
    )


library.define(
    "mlp_sgd_step",
    "(Tensor x, Tensor y, Tensor parameters, Tensor? buffers, Tensor indices, Tensor lr, Tensor diverged_step, "
    "int[] widths, bool[] bias, int first_step, float momentum, float weight_decay, float negative_slope, "
    "float loss_limit, bool normalize, bool gradient_norms, str precision) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=reference.mlp_sgd_step,
    triton="fastspec.ops.mlp_sgd_step.triton:mlp_sgd_step",
    faster=in_place.mlp_sgd_step,
    fake=_fake,
)

_op = torch.ops.fastspec.mlp_sgd_step.default


def _check_indices(indices: object, population: Sequence[int], x: Tensor, look: bool) -> None:
    if not isinstance(indices, Tensor) or indices.dtype != torch.int64:
        got = f"dtype {indices.dtype}" if isinstance(indices, Tensor) else type(indices).__name__
        refuse("indices", got, "an int64 tensor", TypeError)
    batch = indices.shape[-1] if indices.dim() else 0
    if indices.dim() < 2 or batch == 0 or indices.shape[:-2] not in ((), tuple(population)):
        own = f" or [{population[0]}, steps, batch]" if population else ""
        refuse("indices", shape(indices), f"shape [steps, batch]{own}, batch >= 1")
    if indices.device != x.device:
        refuse("indices", f"device {indices.device}", f"the device of x, {x.device}")
    if look and indices.numel():
        low, high = (int(v) for v in indices.aminmax())
        if low < 0 or high >= len(x):
            refuse("indices", f"values from {low} to {high}", f"sample numbers in [0, {len(x)})")


def _check_answers(x: Tensor, y: object, outputs: int, look: bool) -> None:
    takes = f"[{len(x)}, {outputs}] of x's dtype, or int64 labels [{len(x)}]"
    if not isinstance(y, Tensor):
        refuse("y", type(y).__name__, takes, TypeError)
    labels = y.dtype == torch.int64
    if not labels and y.dtype != x.dtype:
        refuse("y", f"dtype {y.dtype}", takes, TypeError)
    if y.shape != ((len(x),) if labels else (len(x), outputs)):
        refuse("y", shape(y), takes)
    if y.device != x.device:
        refuse("y", f"device {y.device}", f"the device of x, {x.device}")
    if not look:
        return
    if not labels:
        check_finite("y", y)
        return
    low, high = (int(v) for v in y.aminmax())
    if low < 0 or high >= outputs:
        refuse("y", f"labels from {low} to {high}", f"labels in [0, {outputs}), the outputs of the students")


def _check_flat(argument: str, flat: Tensor, like: Tensor | None, count: int, look: bool) -> None:
    check_tensor(argument, flat, (1, 2), f"[{count}], or [students, {count}]")
    if flat.shape[-1] != count:
        refuse(argument, shape(flat), f"[{count}], or [students, {count}], as many as the widths have")
    if like is not None and flat.shape != like.shape:
        refuse(argument, shape(flat), f"the shape of parameters, {list(like.shape)}")
    if look:
        check_finite(argument, flat)


def _check_rule(momentum: float, weight_decay: float, negative_slope: float, loss_limit: float) -> None:
    check_real("momentum", momentum, "a number in [0, 1]", 0.0, 1.0)
    check_real("weight_decay", weight_decay, "a finite number >= 0", 0.0)
    check_real("negative_slope", negative_slope, "a number in [0, 1]", 0.0, 1.0)
    if not (isinstance(loss_limit, (int, float)) and loss_limit > 0):
        refuse("loss_limit", repr(loss_limit), "a number > 0, inf for none")


def _check_widths(widths: Sequence[int], bias: Sequence[bool]) -> None:
    if len(widths) < 2:
        refuse("widths", repr(list(widths)), "inputs, hidden nodes of each layer, outputs: two numbers or more")
    for i, width in enumerate(widths):
        check_integer(f"widths[{i}]", width)
    if len(bias) != len(widths) - 1:
        refuse("bias", f"{len(bias)} values", f"one for each of {len(widths) - 1} layers")


def mlp_sgd_step(
    x: Tensor,
    y: Tensor,
    parameters: Tensor,
    widths: Sequence[int],
    *,
    indices: Tensor,
    lr: float | Tensor,
    bias: Sequence[bool] | None = None,
    buffers: Tensor | None = None,
    diverged_step: Tensor | None = None,
    first_step: int = 0,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    negative_slope: float = 0.0,
    loss_limit: float = math.inf,
    normalize: bool = False,
    gradient_norms: bool = False,
    precision: str | None = None,
    check: bool = True,
) -> Stepped:
    """One step of SGD for each row of `indices`, by a deep ReLU network or by P of one shape, each on its own.

    x [N, d]: float32 or float64, any strides. y: the answers to learn, [N, C] of the same dtype, by the mean over the
    batch of 1/2 ||y - f(x)||^2; or labels int64 [N], by the mean over the batch of -log softmax(f(x))[label].
    parameters [K] or [P, K]: for each layer, lowest first, its weight [out, in] and its bias [out]; `layers_of` views
    them so. widths: d, hidden nodes of each layer, C. bias: whether each layer has one; None is all.
    indices: the batches, int64 [steps, batch], or [P, steps, batch] for batches of their own.
    lr: a number at least 0, or one for each step, float64 [steps].
    momentum, weight_decay: as in torch.optim.SGD (weight decay acts on biases too); buffers like parameters, None for
    zeros. negative_slope: in [0, 1]; the gate is off at a pre-activation of 0.
    normalize: after every step the weight vector of each hidden node, without its bias, is divided by its norm.
    gradient_norms: also return the norm of every layer's gradient (weight and bias together, without weight decay).
    precision: of the products, see `fastspec.ops.precision.check_precision`; None is that of the dtype. Parameters stay
    in x's dtype; what products take in is rounded each time: inputs, weights, activations, and the gradients with
    respect to pre-activations, of which the gradient of a bias is the mean. The C++ kernel computes in x's dtype.
    check: look at every value for NaN and infinity, and at every index; False where the caller knows them to be right.
    A student stops at the step at which its batch loss exceeds `loss_limit` or is not finite: it keeps the parameters
    that gave that loss, its buffers are zero, and `diverged_step` [*P] int64 says which step it was, counted from
    first_step; students that have one >= 0 on entry are left alone.
    Returns `Stepped`, new tensors. How steps are divided into calls changes no bit.
    Raises ValueError or TypeError, naming the argument, for whatever does not fit.
    """
    look = check and not torch.compiler.is_compiling()
    check_tensor("x", x, (2,), "[samples, inputs]")
    if x.dtype not in (torch.float32, torch.float64):
        refuse("x", f"dtype {x.dtype}", "float32 or float64", TypeError)
    if len(x) == 0:
        refuse("x", shape(x), "one sample or more")
    bias = [True] * (len(widths) - 1) if bias is None else list(bias)
    _check_widths(widths, bias)
    if x.shape[1] != widths[0]:
        refuse("x", shape(x), f"[samples, {widths[0]}], the inputs of the students")
    _check_answers(x, y, widths[-1], look)
    count = parameter_count(widths, bias)
    _check_flat("parameters", parameters, None, count, look)
    check_same_kind(x=x, parameters=parameters, buffers=buffers)
    if buffers is not None:
        _check_flat("buffers", buffers, parameters, count, look)
    population = parameters.shape[:-1]
    _check_indices(indices, population, x, look)
    check_integer("first_step", first_step, 0)
    _check_rule(momentum, weight_decay, negative_slope, loss_limit)
    steps = indices.shape[-2]
    if not isinstance(lr, Tensor):
        check_real("lr", lr, "a finite number >= 0", 0.0)
        lr = torch.full((steps,), float(lr), dtype=torch.float64, device=x.device)
    if diverged_step is None:
        diverged_step = indices.new_full(population, -1)
    tables = (("lr", lr, torch.float64, (steps,)), ("diverged_step", diverged_step, torch.int64, tuple(population)))
    for name, table, dtype, size in tables:
        if not isinstance(table, Tensor) or table.dtype != dtype or table.shape != size:
            got = f"{table.dtype} {shape(table)}" if isinstance(table, Tensor) else type(table).__name__
            refuse(name, got, f"{dtype} of shape {list(size)}")
        if table.device != x.device:
            refuse(name, f"device {table.device}", f"the device of x, {x.device}")
    if look:
        check_finite("x", x)
        check_finite("lr", lr)
        if bool((lr < 0).any()):
            refuse("lr", f"{float(lr.min())}", "numbers >= 0")
    out = _op(
        x,
        y,
        parameters,
        buffers if momentum else None,
        indices,
        lr,
        diverged_step,
        list(widths),
        bias,
        first_step,
        momentum,
        weight_decay,
        negative_slope,
        loss_limit,
        normalize,
        gradient_norms,
        check_precision(precision, x.dtype),
    )
    moved, kept, loss, norms, diverged = out
    return Stepped(moved, kept if momentum else None, loss, norms if gradient_norms else None, diverged)
