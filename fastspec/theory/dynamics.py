"""The dynamics of weights in matrix form: what a step of gradient descent adds, exactly and in the mean field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from fastspec.adapters import check_placement
from fastspec.networks import MLP
from fastspec.ops.chain_gram import chain_gram
from fastspec.ops.checks import check_finite, check_real, check_tensor, refuse, shape
from fastspec.relu_network import Layer
from fastspec.theory.chains import Chain, Forward, chain, check_chains, forward, with_one

Method = Literal["exact", "mean_field", "coactivation"]


class Moments(NamedTuple):
    """Means over samples of products of activations that feed one layer, each with a last node that is always 1."""

    student_teacher: Tensor  # [m + 1, n + 1] float64, [teacher, student]
    teacher_teacher: Tensor  # [m + 1, m + 1]
    student_student: Tensor  # [n + 1, n + 1]


@torch.no_grad()
def second_moments(teacher: MLP, student: MLP, x: Tensor) -> dict[str, Moments]:
    """L and L* of Luck Matters (Tian et al. 2019): E[f f^T] of the inputs and every hidden layer, lowest first.

    L* = E[f f*^T] there is the transpose of `student_teacher`. The last row and column are of the 1 that carries the
    biases. x [N, inputs]. Raises ValueError or TypeError naming the argument, as `updates`.
    """
    pair = _checked(teacher, student, x)
    passes = [forward(c, x) for c in pair]
    names = ["input", *(f"hidden{i + 1}" for i in range(pair[0].hidden))]
    sides = [[x, *p.activations] for p in passes]
    return {name: _moments(t, s) for name, t, s in zip(names, *sides, strict=True)}


@torch.no_grad()
def updates(teacher: MLP, student: MLP, x: Tensor, *, method: Method = "exact") -> list[Layer]:
    """What a step of gradient descent adds to the student's layers, lowest first, for a learning rate of 1.

    (weight [out, in], bias [out] or None) each, float64: minus the gradient of the mean over samples of
    1/2 ||teacher - student||^2. With L = E[f f^T], L* = E[f f*^T] (`second_moments`) and weights W [out, in],

        dW_l = H*_l W*_l L*_{l-1}^T - H_l W_l L_{l-1}

    method (Luck Matters, Tian et al. 2019, matrix formulation):
      "exact"         every sample has its own H and L: the gradient.
      "mean_field"    H and L are replaced by their means, as if they were independent; exact for one sample.
      "coactivation"  also within H: H_l = beta_l ⊙ E[d d^T], E[d d^T] being the co-activation of gates, and
                      beta_l = W^T H_{l+1} W. The same as "mean_field" with one hidden layer.
    x [N, inputs]. Batch norm is taken in evaluation mode, and the updates are those of the folded layers.
    Raises ValueError or TypeError, naming the argument, for networks that do not fit each other or x.
    """
    if method not in get_args(Method):
        refuse("method", repr(method), f"one of {', '.join(map(repr, get_args(Method)))}")
    pair = _checked(teacher, student, x)
    found = chain_updates(*pair, x, method)
    return [
        (change[:, :-1], None if bias is None else change[:, -1])
        for change, bias in zip(found, pair[1].biases, strict=True)
    ]


def chain_updates(teacher: Chain, student: Chain, x: Tensor, method: Method) -> list[Tensor]:
    """As `updates`, of checked chains: augmented maps [out, in + 1]."""
    passes = [forward(c, x) for c in (teacher, student)]
    maps = [c.augmented() for c in (teacher, student)]
    if method == "exact":
        return _exact(passes, maps[1], x)
    grams = _mean_h(passes, maps) if method == "mean_field" else _coactivation_h(passes, maps)
    moments = [_moments(t, s) for t, s in zip(*([x, *p.activations] for p in passes), strict=True)]
    found = []
    for layer, (t, s, moment) in enumerate(zip(*maps, moments, strict=True)):
        pull, push = t.double() @ moment.student_teacher, s.double() @ moment.student_student
        if layer < len(grams):
            h_student_teacher, h_student_student = grams[layer]
            pull, push = h_student_teacher.mT @ pull, h_student_student @ push
        found.append((pull - push)[: len(student.weights[layer])])
    return found


def step(student: MLP, changes: Sequence[Layer], lr: float, *, normalize: bool = False) -> None:
    """Add `lr` times `updates` to the student's layers, in place.

    normalize: afterwards scale the weight vector and bias of every node, outputs too, to a joint norm of 1, as the
    matrix dynamics of Luck Matters (Tian et al. 2019) do. Raises ValueError for a student with batch norm and for
    updates of another shape.
    """
    weights = live(student)
    check_real("lr", lr, "a finite number")
    if len(changes) != len(student.layers):
        refuse("changes", f"{len(changes)} layers", f"the layers of the student, {len(student.layers)}")
    for i, (layer, (weight, bias)) in enumerate(zip(student.layers, changes, strict=True)):
        if weight.shape != layer.weight.shape or (bias is None) != (layer.bias is None):
            refuse(f"changes[{i}]", shape(weight), f"{shape(layer.weight)}, and a bias where the student has one")
    pairs = [w if b is None else torch.cat([w, b.unsqueeze(1)], 1) for w, b in changes]
    chain_step(weights, pairs, lr)
    if normalize:
        normalize_nodes(weights)


def live(network: MLP) -> Chain:
    """The very weights of a network, which `chain_step` changes; ValueError for one with batch norm."""
    if network.batch_norm is not None:
        refuse("student", "a network with batch norm", "one without, whose weights are the layers of the theory")
    biases = [None if layer.bias is None else layer.bias.detach() for layer in network.layers]
    return Chain([layer.weight.detach() for layer in network.layers], biases, network.negative_slope)


def chain_step(student: Chain, changes: Sequence[Tensor], lr: float) -> None:
    """Add `lr` times maps [out, in + 1] to the layers, in place; the last column is of the bias, if there is one."""
    for weight, bias, change in zip(student.weights, student.biases, changes, strict=True):
        weight.add_(change[:, : weight.shape[1]], alpha=lr)
        if bias is not None:
            bias.add_(change[:, -1], alpha=lr)


def normalize_nodes(network: Chain) -> None:
    """Scale the weight vector and bias of every node to a joint norm of 1, in place."""
    for weight, bias in zip(network.weights, network.biases, strict=True):
        square = weight.square().sum(1)
        norm = (square if bias is None else square + bias.square()).sqrt()
        weight.div_(norm.unsqueeze(1))
        if bias is not None:
            bias.div_(norm)


def _checked(teacher: MLP, student: MLP, x: Tensor) -> tuple[Chain, Chain]:
    for name, network in (("teacher", teacher), ("student", student)):
        if not isinstance(network, MLP):
            refuse(name, type(network).__name__, "an MLP", TypeError)
    pair = chain("teacher", teacher), chain("student", student)
    check_chains(*pair)
    inputs = teacher.widths[0]
    check_tensor("x", x, (2,), f"[samples, {inputs}]")
    if x.shape[1] != inputs or not len(x):
        refuse("x", shape(x), f"[samples, {inputs}], at least one sample")
    check_placement("x", x, teacher=teacher, student=student)
    check_finite("x", x)
    return pair


def _moments(teacher: Tensor, student: Tensor) -> Moments:
    t, s = (with_one(side.double()) for side in (teacher, student))
    return Moments(t.mT @ s / len(t), t.mT @ t / len(t), s.mT @ s / len(t))


def _exact(passes: Sequence[Forward], maps: Sequence[Tensor], x: Tensor) -> list[Tensor]:
    """Means over samples of g f^T; the H and L of a sample are of rank C and 1, and only their products are formed."""
    student = passes[1]
    pulled = (passes[0].output - student.output).double()  # g of the outputs, then of each layer below [N, nodes]
    inputs = [x, *student.activations]
    found = []
    for layer in reversed(range(len(maps))):
        found.append(pulled.mT @ with_one(inputs[layer].double()) / len(x))
        if layer:
            pulled = (pulled @ maps[layer][: pulled.shape[1], :-1].double()) * student.gates[layer - 1]
    return found[::-1]


def _mean_h(passes: Sequence[Forward], maps: Sequence[Sequence[Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """(H* [m + 1, n + 1], H [n + 1, n + 1]) of every hidden layer, means over the samples."""
    gates = [[with_one(g) for g in p.gates] for p in passes]
    samples = len(gates[0][0])
    grams = chain_gram(maps[0][1:], gates[0], maps[1][1:], gates[1])
    return [(gram.h_student_teacher / samples, gram.h_student_student / samples) for gram in grams]


def _coactivation_h(passes: Sequence[Forward], maps: Sequence[Sequence[Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """The same with H = beta ⊙ E[d d^T]."""
    top_t, top_s = (m[-1].double() for m in maps)
    betas = (top_t.mT @ top_s, top_s.mT @ top_s)
    found = []
    for layer in reversed(range(len(passes[0].gates))):
        d_t, d_s = (with_one(p.gates[layer].double()) for p in passes)
        h_st, h_ss = betas[0] * (d_t.mT @ d_s / len(d_t)), betas[1] * (d_s.mT @ d_s / len(d_t))
        found.append((h_st, h_ss))
        w_t, w_s = (m[layer].double() for m in maps)
        betas = (w_t.mT @ h_st @ w_s, w_s.mT @ h_ss @ w_s)
    return found[::-1]
