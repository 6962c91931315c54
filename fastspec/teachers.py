"""Teachers whose nodes are well separated: weights drawn from a finite set, no two nodes alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fastspec.networks import MLP
from fastspec.ops.checks import check_finite, check_floating, check_integer, check_real, check_tensor, refuse, shape
from fastspec.ops.linear_relu.reference import activations
from fastspec.randomness import generator, on_cpu
from fastspec.relu_network import check_widths

STUDENT_SPECIALIZATION = (-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0)
LUCK_MATTERS = (-0.5, -0.25, 0.0, 0.25, 0.5)

ENUMERABLE = 100_000  # up to so many possible weight vectors they are listed and shuffled instead of drawn


@on_cpu
def separated(
    widths: Sequence[int],
    *,
    seed: int = 0,
    weight_set: Sequence[float] = STUDENT_SPECIALIZATION,
    bias: float | None = 0.5,
    strength_decay: float = 0.0,
    x: Tensor | None = None,
    negative_slope: float = 0.0,
    dtype: torch.dtype | None = None,
) -> MLP:
    """A deep teacher as in Student Specialization (Tian, ICML 2020) and Luck Matters (Tian et al. 2019).

    Every weight vector of a layer, the top layer too, is drawn from `weight_set`^inputs, none zero, no two of one
    direction; biases are U(-bias, bias) (None: no biases). The fan-out of node i (from 0) of every hidden layer is
    divided by (i + 1)^strength_decay, and then the weight vector and bias of each node by the vector's norm.

    x: [N, widths[0]] evaluation data, or None. With data every hidden bias is lowered by the median of its node's
    pre-activation, so that half of the samples are active, and each output is shifted and scaled to mean 0 and
    (unbiased) variance 1.

    Raises ValueError or TypeError naming the argument, also where a layer has more nodes than `weight_set` has
    directions, and where an output is constant on x.
    """
    widths = check_widths("widths", widths, at_least=2)
    _check_options(weight_set, strength_decay)
    check_real("negative_slope", negative_slope, "a number in [0, 1]", 0.0, 1.0)
    source = generator(seed, "teacher")
    layers: list[tuple[Tensor, Tensor]] = []
    for i, (inputs, nodes) in enumerate(pairwise(widths)):
        w = separated_vectors(f"widths[{i + 1}]", nodes, inputs, weight_set, source)
        b = torch.zeros(nodes, dtype=torch.float64)
        if bias is not None:
            check_real("bias", bias, "None or a finite number of at least 0", 0.0)
            b = bias * (2 * torch.rand(nodes, dtype=torch.float64, generator=source) - 1)
        if i:
            w = w / _decay(inputs, strength_decay)
        norm = w.norm(dim=1)
        layers.append((w / norm[:, None], b / norm))
    if x is not None:
        if bias is None:
            refuse("x", "data to tune biases on", "None with bias=None")
        layers = _tune(layers, x, negative_slope)
    dtype = dtype or torch.get_default_dtype()
    check_floating("dtype", dtype)
    final = [(w.to(dtype), None if bias is None else b.to(dtype)) for w, b in layers]
    return MLP.from_weights(final, negative_slope=negative_slope)


@on_cpu
def random(widths: Sequence[int], *, seed: int = 0, dtype: torch.dtype | None = None) -> MLP:
    """A deep teacher without separated nodes: weights and biases are uniform, as torch.nn.Linear draws them, and then
    the weight vector and bias of each node are divided by the vector's norm, as in `separated`.

    Raises ValueError or TypeError naming the argument.
    """
    drawn = MLP(widths, seed=seed, dtype=torch.float64).weights()
    dtype = dtype or torch.get_default_dtype()
    check_floating("dtype", dtype)
    norms = [w.norm(dim=1) for w, _ in drawn]
    layers = [(w / norm[:, None], b / norm) for (w, b), norm in zip(drawn, norms, strict=True) if b is not None]
    return MLP.from_weights([(w.to(dtype), b.to(dtype)) for w, b in layers])


@on_cpu
def two_layer(
    d: int,
    m: int,
    c: int,
    *,
    strength_decay: float = 0.0,
    seed: int = 0,
    weight_set: Sequence[float] = STUDENT_SPECIALIZATION,
    bias: float = -0.1,
    dtype: torch.dtype | None = None,
) -> MLP:
    """The two-layer teacher of Student Specialization (Tian, ICML 2020): d inputs, m hidden nodes, c outputs.

    Hidden weight vectors are drawn from `weight_set`^d, none zero, no two of one direction, and scaled to unit norm.
    Each output's weight vector is drawn from `weight_set`^m, none zero, no two equal, and not scaled; then the fan-out
    of hidden node i (from 0) is divided by (i + 1)^strength_decay. All hidden and output biases are `bias`.

    Raises ValueError or TypeError naming the argument, also where the set has too few vectors for m or c.
    """
    for name, size in (("d", d), ("m", m), ("c", c)):
        check_integer(name, size)
    _check_options(weight_set, strength_decay)
    check_real("bias", bias, "a finite number")
    source = generator(seed, "teacher")
    w1 = separated_vectors("m", m, d, weight_set, source)
    w2 = separated_vectors("c", c, m, weight_set, source, parallel=True)
    dtype = dtype or torch.get_default_dtype()
    check_floating("dtype", dtype)
    b1, b2 = (torch.full((nodes,), bias, dtype=dtype) for nodes in (m, c))
    w1 = w1 / w1.norm(dim=1, keepdim=True)
    w2 = w2 / _decay(m, strength_decay)
    return MLP.from_weights([(w1.to(dtype), b1), (w2.to(dtype), b2)])


def separated_vectors(
    argument: str,
    count: int,
    dim: int,
    weight_set: Sequence[float],
    source: torch.Generator,
    *,
    parallel: bool = False,
) -> Tensor:
    """`count` vectors of `weight_set`^dim, float64 [count, dim], each uniform among those still allowed.

    Allowed are vectors that are not zero and have another direction than all before (with `parallel`: are not equal
    to any before). Raises ValueError naming `argument` when there are too few.
    """
    taken: set[bytes] = set()
    kept: list[Tensor] = []
    for block in _draws(count, dim, torch.tensor(weight_set, dtype=torch.float64), source):
        largest = block.abs().amax(dim=1, keepdim=True)
        # rounded, so that parallel vectors agree whatever the rounding of the quotient; + 0.0 turns -0.0 into 0.0
        keys = block if parallel else (block / largest).mul(2**40).round() + 0.0
        for i, (nonzero, key) in enumerate(zip((largest > 0).squeeze(1).tolist(), keys.numpy(), strict=True)):
            code = key.tobytes()
            if nonzero and code not in taken:
                taken.add(code)
                kept.append(block[i])
                if len(kept) == count:
                    return torch.stack(kept)
    what = "distinct nonzero vectors" if parallel else "directions"
    refuse(argument, count, f"at most {len(kept)}, the {what} of {dim} weights each from {list(weight_set)}")


def _draws(count: int, dim: int, values: Tensor, source: torch.Generator) -> Iterator[Tensor]:
    """Blocks of vectors of values^dim [block, dim]: all of them in random order if they are few, else without end."""
    vectors = float(len(values)) ** dim if dim * math.log(len(values)) < 700 else math.inf
    if vectors <= max(ENUMERABLE, 8 * count):
        order = torch.randperm(round(vectors), generator=source)
        digits = len(values) ** torch.arange(dim)
        yield values[order[:, None] // digits % len(values)]
        return
    while True:
        yield values[torch.randint(len(values), (count, dim), generator=source)]


def _decay(nodes: int, strength_decay: float) -> Tensor:
    return torch.arange(1, nodes + 1, dtype=torch.float64) ** strength_decay


def _tune(layers: list[tuple[Tensor, Tensor]], x: Tensor, negative_slope: float) -> list[tuple[Tensor, Tensor]]:
    """Median biases of the hidden layers and standardised outputs, on x [N, d]."""
    d = layers[0][0].shape[1]
    check_tensor("x", x, (2,), f"[samples, {d}]")
    if x.shape[1] != d or len(x) < 2:
        refuse("x", shape(x), f"[samples, {d}], at least 2 samples")
    check_finite("x", x)
    activation = x.detach().cpu().double()
    *hidden, (top, top_bias) = layers
    tuned = []
    for w, b in hidden:
        pre_activation = activation @ w.T + b  # [N, nodes]
        tuned.append((w, b - pre_activation.median(dim=0).values))
        activation = activations(activation, *tuned[-1], negative_slope, "fp64")
    outputs = activation @ top.T + top_bias  # [N, C]
    std = outputs.std(dim=0)
    if not (std > 0).all():
        refuse(
            "x", f"data on which output {int((std <= 0).nonzero()[0])} is constant", "data that every output varies on"
        )
    return [*tuned, (top / std[:, None], (top_bias - outputs.mean(dim=0)) / std)]


def _check_options(weight_set: Sequence[float], strength_decay: float) -> None:
    check_real("strength_decay", strength_decay, "a finite number of at least 0", 0.0)
    if not hasattr(weight_set, "__len__"):
        refuse("weight_set", type(weight_set).__name__, "a sequence of different numbers", TypeError)
    if len(weight_set) == 0 or len(set(weight_set)) != len(weight_set):
        refuse("weight_set", repr(list(weight_set)), "at least one number, all different")
    for i, value in enumerate(weight_set):
        check_real(f"weight_set[{i}]", value, "a finite number")
