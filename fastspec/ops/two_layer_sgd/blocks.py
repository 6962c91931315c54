"""One block of students of one padded width, and its SGD step (see README.md of this op)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

STUDENTS = 8  # students of a block: every product has this batch count, whatever the population
ALIGN = 64  # bytes that every row is a multiple of, so that a product takes the same path in every slot

leaky_relu = torch.ops.aten.leaky_relu.out
leaky_relu_backward = torch.ops.aten.leaky_relu_backward.grad_input


def padded(width: int, dtype: torch.dtype) -> int:
    """`width` rounded up to whole 64-byte rows."""
    unit = ALIGN // dtype.itemsize
    return -(-width // unit) * unit


@dataclass(frozen=True)
class Rule:
    """The hyper-parameters that all students share."""

    momentum: float
    weight_decay: float
    negative_slope: float
    bias: bool
    normalize: bool
    fixed_first: bool
    fixed_top: bool


class Scratch:
    """Activations of one block over `b` samples, and the views of them that a step takes."""

    def __init__(self, like: Tensor, b: int, inputs: int, hidden: int, outputs: int):
        def empty(width: int) -> Tensor:
            return like.new_empty(STUDENTS, b, width)

        self.x, self.y = empty(inputs), empty(outputs)
        self.pre_activation, self.activation, self.gradient = empty(hidden), empty(hidden), empty(hidden)
        self.residual, self.square = empty(outputs), empty(outputs)
        self.x_rows, self.y_rows = self.x.flatten(0, 1), self.y.flatten(0, 1)  # [8 b, ..]
        self.squares = self.square.flatten(1)  # [8, b O]
        self.activation_t, self.gradient_t = self.activation.mT, self.gradient.mT
        self.constant, self.constant_gradient = self.activation[..., -1], self.gradient[..., -1]  # [8, b]


Batch = tuple[Tensor, Tensor, Scratch]  # x [8, b, D], y [8, b, O]


class Block:
    """Up to eight students, biases inside the weights; a slot without a student holds zeros.

    first [8, H, D]: column `d` multiplies an input that is always 1 (0 without biases).
    top [8, H, O]: row `H - 1` belongs to a hidden node that is always 1 (0 without biases).
    `old` are the weights before a step and `new` those after it; `swap` makes the step final.
    """

    def __init__(self, students: list[int], like: Tensor, inputs: int, hidden: int, outputs: int, d: int, rule: Rule):
        self.students: list[int | None] = [*students, *[None] * (STUDENTS - len(students))]
        self.hidden, self.d, self.rule = hidden, d, rule
        first, top = like.new_zeros(STUDENTS, hidden, inputs), like.new_zeros(STUDENTS, hidden, outputs)
        self.old, self.new = [first, top], [first.clone(), top.clone()]
        self.buffers = [first.clone(), top.clone()] if rule.momentum else None
        self.trained = [i for i, fixed in enumerate((rule.fixed_first, rule.fixed_top)) if not fixed]

    def step(self, batches: Iterable[Batch], samples: int, lr: Tensor, loss: Tensor) -> Tensor:
        """One step from `old` to `new`, lr [8, 1, 1].

        Adds the squared norm of the residuals to loss [8]; returns 0 for every student whose new weights are all finite
        and NaN for the others [8].
        """
        self._decay(lr)
        scale = lr / samples if self.buffers is None else torch.full_like(lr, 1.0 / samples)
        for x, y, scratch in batches:
            self._forward(x, y, scratch)
            torch.mul(scratch.residual, scratch.residual, out=scratch.square)
            loss += scratch.squares.sum(1)
            self._backward(x, scratch, scale)
        if self.buffers is not None:
            for i in self.trained:
                torch.mul(self.buffers[i], lr, out=self.new[i])
                self.new[i].add_(self.old[i])
        if self.rule.normalize and not self.rule.fixed_first:
            rows = self.new[0][..., : self.d]
            norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
            rows.div_(norm.masked_fill_(norm == 0, 1.0))
        first, top = ((weights * 0).flatten(1).sum(1) for weights in self.new)
        return first + top

    def _decay(self, lr: Tensor) -> None:
        """What a step does before it has seen a sample: weight decay, and the decay of the momentum buffers."""
        decay = self.rule.weight_decay
        for i in self.trained:
            if self.buffers is not None:
                self.buffers[i].mul_(self.rule.momentum)
                if decay:
                    self.buffers[i].sub_(self.old[i] * decay)
            elif decay:
                torch.mul(self.old[i], 1.0 - lr * decay, out=self.new[i])
            else:
                self.new[i].copy_(self.old[i])

    def _forward(self, x: Tensor, y: Tensor, s: Scratch) -> None:
        first, top = self.old
        torch.bmm(x, first.mT, out=s.pre_activation)
        leaky_relu(s.pre_activation, self.rule.negative_slope, out=s.activation)
        s.constant.fill_(float(self.rule.bias))
        torch.baddbmm(y, s.activation, top, alpha=-1, out=s.residual)

    def _backward(self, x: Tensor, s: Scratch, scale: Tensor) -> None:
        """Add the negative gradient of the loss, times scale [8, 1, 1], to the new weights or to the buffers."""
        first, top = self.new if self.buffers is None else self.buffers
        s.residual.mul_(scale)
        if not self.rule.fixed_top:
            top.baddbmm_(s.activation_t, s.residual)
        if self.rule.fixed_first:
            return
        torch.bmm(s.residual, self.old[1].mT, out=s.gradient)
        slope = self.rule.negative_slope
        leaky_relu_backward(s.gradient, s.pre_activation, slope, False, grad_input=s.gradient)
        s.constant_gradient.zero_()  # or the unused weights of the constant node would drift
        first.baddbmm_(s.gradient_t, x)

    def swap(self) -> None:
        """Make the step final."""
        self.old, self.new = self.new, self.old

    def stop(self, slot: int) -> None:
        """Turn a slot into padding: zero weights have zero steps at a learning rate of zero."""
        self.students[slot] = None
        for tensors in (self.old, self.new, self.buffers or []):
            for tensor in tensors:
                tensor[slot].zero_()

    def views(self, weights: list[Tensor], slot: int, nodes: int, outputs: int) -> tuple[Tensor, ...]:
        """The parts w1 [n, d], b1 [n], w2 [n, C], b2 [C] of one student in `old` or `buffers`."""
        first, top = weights[0][slot], weights[1][slot]
        return first[:nodes, : self.d], first[:nodes, self.d], top[:nodes, :outputs], top[-1, :outputs]
