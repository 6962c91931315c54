"""`mlp_sgd_step` in torch operations that write to kept memory; weight gradients are never written (README.md)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from fastspec.ops.mlp_sgd_step.reference import layers_of, loss_and_residual, normalize_
from fastspec.ops.precision import rounded

close_gates = torch.ops.aten.threshold_backward.grad_input
slope_gates = torch.ops.aten.leaky_relu_backward.grad_input


class Student:
    """One student, or P side by side: its layers, and room for a batch of activations and their gradients."""

    def __init__(
        self,
        parameters: Tensor,
        buffers: Tensor | None,
        batch: int,
        widths: Sequence[int],
        bias: Sequence[bool],
        negative_slope: float,
        precision: str = "fp32",
    ):
        population = parameters.shape[:-1]
        self.slope, self.batch, self.many = negative_slope, batch, bool(population)
        self.operand = partial(rounded, precision=precision)
        self.layers = layers_of(parameters, widths, bias)
        self.learning = self.layers if buffers is None else layers_of(buffers, widths, bias)  # what gradients go into
        room = [
            (parameters.new_empty(*population, batch, n), parameters.new_empty(*population, batch, n))
            for n in widths[1:]
        ]
        self.activations, self.gradients = [h for h, _ in room], [g for _, g in room]
        self.ones = parameters.new_ones(*population, batch, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs [*P, B, C], in memory that the next batch overwrites."""
        product, add = (torch.bmm, torch.baddbmm) if self.many else (torch.mm, torch.addmm)
        top = len(self.layers) - 1
        for i, (weight, b) in enumerate(self.layers):
            out = self.activations[i]
            x, weight = self.operand(x), self.operand(weight)
            if b is None:
                product(x, weight.mT, out=out)
            else:
                add(b.unsqueeze(-2), x, weight.mT, out=out)
            if i < top:
                torch.nn.functional.leaky_relu_(out, self.slope) if self.slope else out.relu_()
            x = out
        return x

    def backward(self, x: Tensor, g: Tensor, kept: float, added: float, norms: Tensor | None) -> None:
        """Every layer that learns becomes `kept` times itself, plus `added` times its gradient summed over the batch.

        g [*P, B, C]: the gradient with respect to the outputs. norms: a row to fill with the norms of the gradients.
        """
        for i in reversed(range(len(self.layers))):
            h, g = self.activations[i - 1] if i else x, self.operand(g)
            below = self._gated(i, g, h) if i else g  # by the weights before their step
            h = self.operand(h)
            if norms is not None:
                norms[..., i] = self._norm(g, h, self.layers[i][1] is not None)
            weight, b = self.learning[i]
            if self.many:
                weight.baddbmm_(g.mT, h, beta=kept, alpha=added)
            else:
                weight.addmm_(g.mT, h, beta=kept, alpha=added)
            if b is not None and self.many:
                b.unsqueeze(-1).baddbmm_(g.mT, self.ones, beta=kept, alpha=added)
            elif b is not None:
                b.addmv_(g.mT, self.ones[:, 0], beta=kept, alpha=added)
            g = below

    def _gated(self, i: int, g: Tensor, h: Tensor) -> Tensor:
        """The gradient with respect to the pre-activations below layer i."""
        below = self.gradients[i - 1]
        (torch.bmm if self.many else torch.mm)(g, self.operand(self.layers[i][0]), out=below)
        if self.slope:
            return slope_gates(below, h, self.slope, True, grad_input=below)
        return close_gates(below, h, 0, grad_input=below)

    def _norm(self, g: Tensor, h: Tensor, bias: bool) -> Tensor:
        """|g^T h| / B from the batch's two Grams [B, B]: sum over pairs of samples of (g g')(h h' + 1)."""
        across = g.double() @ g.double().mT
        along = h.double() @ h.double().mT
        return (across * (along + float(bias))).sum((-2, -1)).clamp_(min=0).sqrt_() / self.batch


def mlp_sgd_step(
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
    """Parameters, buffers (empty without momentum), losses, gradient norms (empty unless asked for), diverged steps."""
    population, (steps, batch) = parameters.shape[:-1], indices.shape[-2:]
    parameters, diverged = parameters.clone(memory_format=torch.contiguous_format), diverged_step.clone()
    if momentum:
        buffers = (
            torch.zeros_like(parameters) if buffers is None else buffers.clone(memory_format=torch.contiguous_format)
        )
    losses = x.new_full((*population, steps), math.nan, dtype=torch.float64)
    norms = x.new_full((*population, steps, len(widths) - 1), math.nan, dtype=torch.float64)
    stopped = _Stopped(parameters, buffers if momentum else None, diverged)
    student = Student(parameters, buffers if momentum else None, batch, widths, bias, negative_slope, precision)
    limit = min(loss_limit, torch.finfo(torch.float64).max)
    rates = lr.tolist()
    for t, (inputs, answers) in enumerate(_Batches(x, y, indices, population)):
        if stopped.all:
            break
        output = student.forward(inputs)
        if answers.dtype == torch.int64:
            loss, g = loss_and_residual(output, answers)
            loss = loss.mean(-1).double()
        else:
            g = output.sub_(answers)
            loss = torch.linalg.vector_norm(g, dim=(-2, -1), dtype=torch.float64).square_().div_(2 * batch)
        losses[..., t] = loss
        if not bool((loss <= limit).all()):
            stopped.add(~(loss <= limit), first_step + t)
            if stopped.all:
                break
        row, rate = norms[..., t, :] if gradient_norms else None, rates[t]
        if buffers is None or not momentum:
            student.backward(inputs, g, 1 - rate * weight_decay, -rate / batch, row)
        else:
            student.backward(inputs, g, momentum, 1 / batch, row)
            if weight_decay:
                buffers.add_(parameters, alpha=weight_decay)
            parameters.add_(buffers, alpha=-rate)
        if normalize:
            normalize_(parameters, widths, bias)
    stopped.restore()
    _forget(losses, norms, diverged, diverged_step, first_step)
    none = losses.new_empty(0)
    kept = buffers if momentum and buffers is not None else parameters.new_empty(0)
    return parameters, kept, losses, norms if gradient_norms else none, diverged


class _Batches:
    """The batches of every step, each gathered into the same memory: a BLAS may round by where its operands lie."""

    def __init__(self, x: Tensor, y: Tensor, indices: Tensor, population: Sequence[int]):
        own = indices.shape[:-2]
        self.rows = indices.movedim(-2, 0).flatten(1).contiguous().unbind(0)
        self.tables = [(t, t.new_empty(len(self.rows[0]), *t.shape[1:])) for t in (x, y)] if self.rows else []
        size = (*own, indices.shape[-1])
        whole = (*population, indices.shape[-1])
        self.views = [room.view(*size, *room.shape[1:]).expand(*whole, *room.shape[1:]) for _, room in self.tables]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in self.rows:
            for table, room in self.tables:
                torch.index_select(table, 0, rows, out=room)
            yield self.views[0], self.views[1]


class _Stopped:
    """Students that take no more steps: what they keep, to be put back in the end."""

    def __init__(self, parameters: Tensor, buffers: Tensor | None, diverged: Tensor):
        self.parameters, self.buffers, self.diverged = parameters, buffers, diverged
        self.kept: list[tuple[Tensor, Tensor]] = []
        self.all = False
        self._keep(diverged >= 0)

    def add(self, fails: Tensor, step: int) -> None:
        """Stop students before this step; those that have stopped stay as they were."""
        fails = fails & (self.diverged < 0)
        self.diverged.masked_fill_(fails, step)
        self._keep(fails)

    def _keep(self, which: Tensor) -> None:
        if bool(which.any()):
            self.kept.append((which, self.parameters[which].clone()))
            self.all = bool((self.diverged >= 0).all())

    def restore(self) -> None:
        for which, parameters in self.kept:
            self.parameters[which] = parameters
            if self.buffers is not None:
                self.buffers[which] = 0.0


def _forget(losses: Tensor, norms: Tensor, diverged: Tensor, before: Tensor, first_step: int) -> None:
    """NaN for what came after a student stopped: no loss beyond that step, no gradient from it on."""
    steps = torch.arange(losses.shape[-1], device=losses.device)
    end = torch.where(diverged < 0, losses.shape[-1], torch.where(before >= 0, -1, diverged - first_step)).unsqueeze(-1)
    losses.masked_fill_(steps > end, math.nan)
    norms.masked_fill_((steps >= end).unsqueeze(-1), math.nan)
