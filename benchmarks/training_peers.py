"""What `two_layer_sgd` is measured against: the same students, trained on the same batches, in plain torch.

Every peer takes a `Training` and returns the weights of all students after its last step. The op draws its batches
itself; the peers are given them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from benchmarks.training import LR, Training, Weights

close_gates = torch.ops.aten.threshold_backward.grad_input
WINDOW = 8  # steps whose batches are gathered, or whose code is compiled, at a time


def on_threads(call: Callable[[Training], Weights], threads: int) -> Callable[[Training], Weights]:
    """The call, with so many threads inside every torch operation."""

    def limited(t: Training) -> Weights:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return call(t)
        finally:
            torch.set_num_threads(before)

    return limited


def serial(t: Training) -> Weights:
    """One student after the other, with the operations of the research code.

    At every step the batch is selected by a Python list, a column of ones is appended to inputs and activations, both
    networks answer the batch, inactive nodes are set to 0 through boolean masks, and gradients are divided by the batch
    size before they are added. Only the draw of the list (`random.choices`) is left out.
    """
    (teacher,), done = _with_biases(t.teacher), []
    for (first, top), batches in zip(_with_biases(t.weights), t.indices, strict=True):
        for rows in batches.tolist():
            x = t.x[rows, :].clone()
            y = _answer(x, *teacher)[-1]
            x, h, inactive, f = _answer(x, first, top)
            r = y - f
            top_step = h.T @ r
            g = r @ top.T
            g[inactive] = 0
            first_step = x.T @ g[:, :-1]
            top_step /= len(x)
            first_step /= len(x)
            first += LR * first_step
            top += LR * top_step
        done.append((first[:-1].T, first[-1], top[:-1], top[-1]))
    return Weights(*map(torch.stack, zip(*done, strict=True)))


def _with_biases(weights: Weights) -> list[tuple[Tensor, Tensor]]:
    """For every student [d + 1, n] and [n + 1, C], the last row the bias."""
    return [(torch.vstack([w1.T, b1]), torch.vstack([w2, b2])) for w1, b1, w2, b2 in zip(*weights, strict=True)]


def _answer(x: Tensor, first: Tensor, top: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ones = x.new_zeros(len(x), 1).fill_(1.0)
    x = torch.cat([x, ones], dim=1)
    h = torch.cat([x @ first, ones], dim=1)
    inactive = h < 0
    h[inactive] = 0
    return x, h, inactive, h @ top


def serial_lean(t: Training) -> Weights:
    """One student after the other, nothing computed twice: the equations of the op's README, line by line."""
    done = []
    for w1, b1, w2, b2, batches in zip(*(w.clone() for w in t.weights), t.indices, strict=True):
        for rows in batches:
            x = t.x[rows]
            z = torch.addmm(b1, x, w1.T)
            h = z.relu()
            r = (t.y[rows] - torch.addmm(b2, h, w2)).mul_(LR / len(rows))
            g = (r @ w2.T).mul_(z > 0)
            w2.addmm_(h.T, r)
            b2 += r.sum(0)
            w1.addmm_(g.T, x)
            b1 += g.sum(0)
        done.append((w1, b1, w2, b2))
    return Weights(*map(torch.stack, zip(*done, strict=True)))


def bmm_plain(t: Training) -> Weights:
    """Batched products in idiomatic torch, all students in every call."""
    w1, b1, w2, b2 = (w.clone() for w in t.weights)
    for rows in t.indices.unbind(1):
        x = t.x[rows]  # [P, B, d]
        z = torch.baddbmm(b1.unsqueeze(1), x, w1.mT)  # [P, B, n]
        h = z.relu()
        r = (t.y[rows] - torch.baddbmm(b2.unsqueeze(1), h, w2)).mul_(LR / rows.shape[1])
        g = torch.bmm(r, w2.mT).mul_(z > 0)
        w2.baddbmm_(h.mT, r)
        b2 += r.sum(1)
        w1.baddbmm_(g.mT, x)
        b1 += g.sum(1)
    return Weights(w1, b1, w2, b2)


def bmm(t: Training, *, unit: int = 1, transposed: bool = False) -> Weights:
    """Batched products written for speed: seven operations a step, all of them into kept memory.

    Both biases are inside the products: input `d` is always 1; hidden node `n` has no fan-in, so that its gate is
    closed, and `maximum` makes it 1. The batches of eight steps are gathered at once; a residual takes the place of its
    gathered labels; the learning rate is a factor inside the last two products. Rows are filled up with zeros to whole
    multiples of `unit` values; `transposed` keeps the weights as [d, n] and [C, n].
    """
    w1, b1, w2, b2 = t.weights
    (students, n, d), outputs, batch = w1.shape, w2.shape[2], t.indices.shape[2]
    D, H, O = (-(-size // unit) * unit for size in (d + 1, n + 1, outputs))  # noqa: E741
    x, y = t.x.new_zeros(len(t.x), D), F.pad(t.y, (0, O - outputs))
    x[:, :d], x[:, d] = t.x, 1
    first, top = w1.new_zeros(students, H, D), w2.new_zeros(students, H, O)
    first[:, :n, :d], first[:, :n, d], top[:, :n, :outputs], top[:, n, :outputs] = w1, b1, w2, b2
    z, h, g = (w1.new_empty(students, batch, H) for _ in range(3))
    constant = torch.zeros_like(h)
    constant[..., n] = 1
    xs, rs = w1.new_empty(WINDOW, students, batch, D), w1.new_empty(WINDOW, students, batch, O)
    if transposed:
        first, top = first.mT.contiguous(), top.mT.contiguous()
    into_hidden, into_outputs = (first, top.mT) if transposed else (first.mT, top)  # [P, D, H], [P, H, O]
    back_to_hidden = into_outputs.mT
    window = []  # of every step its inputs, its labels, and the factors of its two updates
    for inputs, labels in zip(xs, rs, strict=True):
        updates = ((inputs.mT, g), (labels.mT, h)) if transposed else ((g.mT, inputs), (h.mT, labels))
        window.append((inputs, labels, *updates))
    for rows in t.indices.transpose(0, 1).contiguous().split(WINDOW):  # [8, P, B]
        order = rows.flatten()
        torch.index_select(x, 0, order, out=xs[: len(rows)].flatten(0, 2))
        torch.index_select(y, 0, order, out=rs[: len(rows)].flatten(0, 2))
        for inputs, residual, first_update, top_update in window[: len(rows)]:
            torch.bmm(inputs, into_hidden, out=z)
            torch.maximum(z, constant, out=h)
            residual.baddbmm_(h, into_outputs, alpha=-1)
            torch.bmm(residual, back_to_hidden, out=g)
            close_gates(g, z, 0, grad_input=g)
            top.baddbmm_(*top_update, alpha=LR / batch)
            first.baddbmm_(*first_update, alpha=LR / batch)
    if transposed:
        first, top = first.mT, top.mT
    return Weights(first[:, :n, :d], first[:, :n, d], top[:, :n, :outputs], top[:, n, :outputs])


def _loss(weights: Weights, x: Tensor, y: Tensor) -> Tensor:
    w1, b1, w2, b2 = weights
    return 0.5 * (F.relu(x @ w1.T + b1) @ w2 + b2 - y).square().sum(1).mean()


def _steps(weights: Weights, x: Tensor, y: Tensor, batches: Sequence[Tensor]) -> Weights:
    """A step for each of the batches [P, B]."""
    for rows in batches:
        gradients = vmap(grad(_loss))(weights, x[rows], y[rows])
        weights = Weights(*(w - LR * g for w, g in zip(weights, gradients, strict=True)))
    return weights


def vmapped(t: Training) -> Weights:
    """`torch.func.vmap(grad)` over the students."""
    return _steps(t.weights, t.x, t.y, t.indices.unbind(1))


def compiled_vmap() -> Callable[[Training], Weights]:
    """`torch.compile` of eight steps of `vmapped` at a time, for one shape; compiles when it is called first."""
    torch.compiler.reset()  # one function may be compiled for few shapes only
    steps = torch.compile(_steps, fullgraph=True, dynamic=False)

    def call(t: Training) -> Weights:
        weights = t.weights
        for batches in t.indices.split(WINDOW, dim=1):
            weights = steps(weights, t.x, t.y, batches.unbind(1))
        return weights

    return call
