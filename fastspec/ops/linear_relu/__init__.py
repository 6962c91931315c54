"""Op `linear_relu`: linear + bias + (leaky) ReLU, with packed gates and each node's sums over the samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastspec.ops import library
from fastspec.ops.checks import check_real, check_same_kind, check_tensor, refuse, shape
from fastspec.ops.linear_relu import reference
from fastspec.ops.precision import check_precision


class LinearRelu(NamedTuple):
    """What `linear_relu` returns; `n` nodes, `*P` an optional population axis."""

    activation: Tensor  # [*P, N, n] in the dtype of the input
    gates: (
        Tensor  # [*P, N, ceil(n / 8)] uint8; bit k % 8 of byte k // 8 says whether node k's pre-activation is above 0
    )
    node_sum: Tensor  # [*P, n] float64; activations summed over the samples, before they are rounded to the dtype
    active: Tensor  # [*P, n] int64; samples on which the gate is on


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, negative_slope: float, precision: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *population, n, _ = weight.shape
    return (
        x.new_empty(*population, x.shape[-2], n),
        x.new_empty(*population, x.shape[-2], -(-n // 8), dtype=torch.uint8),
        x.new_empty(*population, n, dtype=torch.float64),
        x.new_empty(*population, n, dtype=torch.int64),
    )


library.define(
    "linear_relu",
    "(Tensor input, Tensor weight, Tensor? bias, float negative_slope, str precision) -> "
    "(Tensor, Tensor, Tensor, Tensor)",
    reference=reference.linear_relu,
    fake=_fake,
    triton="fastspec.ops.linear_relu.triton:linear_relu",
)

_op = torch.ops.fastspec.linear_relu.default

_INPUT, _WEIGHT, _BIAS = "[*networks, samples, inputs]", "[*networks, nodes, inputs]", "[*networks, nodes]"


def check_layer(names: Sequence[str], ranks: Sequence[int], x: Tensor, weight: Tensor, bias: Tensor | None) -> int:
    """Check that input, weight and bias, called `names`, make a layer; its number of samples. `ranks` of a weight."""
    check_tensor(names[0], x, ranks, _INPUT)
    check_tensor(names[1], weight, ranks, _WEIGHT)
    inputs, weights = x.shape, weight.shape
    if weights[-1] != inputs[-1]:
        refuse(names[1], shape(weight), f"{_WEIGHT} with {inputs[-1]} inputs, the width of {names[0]}")
    if len(inputs) == 3 and inputs[:1] != weights[:-2]:
        refuse(
            names[0], shape(x), f"one input for all networks, or one for each network of {names[1]}, {shape(weight)}"
        )
    if bias is not None:
        check_tensor(names[2], bias, (len(weights) - 1,), _BIAS)
        if bias.shape != weights[:-1]:
            refuse(names[2], shape(bias), f"shape {list(weights[:-1])}, the nodes of {names[1]}")
    return inputs[-2]


def linear_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    negative_slope: float = 0.0,
    precision: str | None = None,
) -> LinearRelu:
    """`relu(x @ weight.T + bias)`, its gates in bits, and what the moments of one network need of it.

    x: [N, d] shared by all networks or [P, N, d]; weight: [n, d] or [P, n, d]; bias: [n] or [P, n] or None; one dtype
    (float64, float32, float16, bfloat16) and device, any strides.
    negative_slope: in [0, 1]; 0 is ReLU. At a pre-activation of 0 the gate is off.
    precision: of the product, see `fastspec.ops.precision.check_precision`; None is that of the dtype.
    Raises ValueError or TypeError, naming the argument, for wrong ranks, shapes, dtypes, devices, slopes or precisions.
    """
    check_layer(("x", "weight", "bias"), (2, 3), x, weight, bias)
    check_same_kind(x=x, weight=weight, bias=bias)
    check_real("negative_slope", negative_slope, "a number in [0, 1]", 0.0, 1.0)
    return LinearRelu(*_op(x, weight, bias, negative_slope, check_precision(precision, x.dtype)))
