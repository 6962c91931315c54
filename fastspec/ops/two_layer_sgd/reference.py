"""Specification of `two_layer_sgd` in batched torch (see README.md of this op for the mathematics and the layout)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from fastspec.ops.normal import fresh_inputs
from fastspec.ops.philox import batch_indices
from fastspec.ops.two_layer_sgd.blocks import STUDENTS, Batch, Block, Rule, Scratch, padded

SAMPLES = 4096  # samples of a batch that are in memory at a time
DRAWS = 1 << 19  # batch indices that are in memory at a time
SMALL_BATCH = 128  # samples up to which the products of a block are too short for more than one thread


class Run:
    """One call: the students of a packed population in blocks, and the steps they take together."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        packed: Sequence[Tensor],
        buffers: Sequence[Tensor],
        offsets: Tensor,
        rule: Rule,
        teacher: Callable[[Tensor], Tensor] | None,
    ):
        self.d, self.outputs, self.rule, self.teacher = x.shape[1], y.shape[1], rule, teacher
        self.x = x.new_zeros(len(x), padded(self.d + 1, x.dtype))  # [N, D]
        self.x[:, : self.d] = x
        self.x[:, self.d] = float(rule.bias)
        self.y = y.new_zeros(len(y), padded(self.outputs, y.dtype))  # [N, O]
        self.y[:, : self.outputs] = y
        self.packed, self.buffers, self.offsets = packed, buffers, offsets.tolist()
        self.scratch: dict[tuple[int, int], Scratch] = {}
        self.blocks: list[Block] = []

    def pack(self, students: Sequence[int]) -> None:
        """Lay the given students out in blocks of one padded width each."""
        by_width: dict[int, list[int]] = {}
        for k in students:
            hidden = padded(self.offsets[k + 1] - self.offsets[k] + 1, self.x.dtype)
            by_width.setdefault(hidden, []).append(k)
        for hidden, ks in sorted(by_width.items()):
            for start in range(0, len(ks), STUDENTS):
                members = ks[start : start + STUDENTS]
                block = Block(members, self.x, self.x.shape[1], hidden, self.y.shape[1], self.d, self.rule)
                self.blocks.append(block)
                for slot, k in enumerate(members):
                    for part, rows in self._parts(block, slot, k):
                        part.copy_(rows)
                for new, old in zip(block.new, block.old, strict=True):
                    new.copy_(old)

    def unpack(self, block: Block, slot: int) -> None:
        """Write one student back."""
        k = block.students[slot]
        if k is not None:
            for part, rows in self._parts(block, slot, k):
                rows.copy_(part)

    def stop(self, block: Block, slot: int) -> None:
        """Write one student back as it was before the step, and turn its slot into padding."""
        for buffer in block.buffers or []:
            buffer[slot].zero_()
        self.unpack(block, slot)
        block.stop(slot)

    def advance(
        self, rates: Tensor, rows: list[Tensor] | None, samples: int, loss_limit: float
    ) -> Iterator[tuple[int, int]]:
        """Make one step for every row of rates [T, P]; yields (student, t) for every student that diverges.

        rows: the batches [T, 8, B] of every block; None when every batch is all samples.
        """
        slot_rates = [_slots(block, rates, 0.0)[..., None, None] for block in self.blocks]  # [T, 8, 1, 1]
        limit = min(loss_limit, torch.finfo(rates.dtype).max)
        limits = rates.new_tensor([[math.inf if k is None else limit for k in block.students] for block in self.blocks])
        loss, spoilt = torch.empty_like(limits), torch.empty_like(limits)
        for t in range(len(rates)):
            loss.zero_()
            for i, block in enumerate(self.blocks):
                batches = self.batches(block, None if rows is None else rows[i][t])
                spoilt[i] = block.step(batches, samples, slot_rates[i][t], loss[i])
            healthy = loss / (2 * samples) + spoilt <= limits  # NaN is not healthy
            if not bool(healthy.all()):
                for i, slot in (~healthy).nonzero().tolist():
                    k = self.blocks[i].students[slot]
                    assert k is not None, "padding has zero weights and no limit"
                    self.stop(self.blocks[i], slot)
                    limits[i, slot], slot_rates[i][:, slot] = math.inf, 0.0
                    yield k, t
            for block in self.blocks:
                block.swap()

    def _parts(self, block: Block, slot: int, k: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Student `k`'s part of each tensor of a block, beside its rows in the packed tensors."""
        nodes = slice(self.offsets[k], self.offsets[k + 1])
        pairs = [(block.old, self.packed)]
        if block.buffers is not None:
            pairs.append((block.buffers, self.buffers))
        for weights, packed in pairs:
            parts = block.views(weights, slot, nodes.stop - nodes.start, self.outputs)
            for i, (part, rows) in enumerate(zip(parts, packed, strict=True)):
                if self.rule.bias or i % 2 == 0:  # without biases, the given ones stay as they are
                    yield part, rows[k] if i == 3 else rows[nodes]

    def batches(self, block: Block, rows: Tensor | None) -> Iterator[Batch]:
        """The batch of one step, in parts of at most 4096 samples.

        rows: which samples, [8, B] int64; fresh inputs [8, B, d] of a floating dtype; or None for all samples.
        """
        samples = len(self.x) if rows is None else rows.shape[1]
        for start in range(0, samples, SAMPLES):
            size = min(SAMPLES, samples - start)
            key = (size, block.hidden)
            if key not in self.scratch:
                self.scratch[key] = Scratch(self.x, size, self.x.shape[1], block.hidden, self.y.shape[1])
            scratch = self.scratch[key]
            if rows is None:
                x, y = self.x[start : start + size], self.y[start : start + size]
                yield x.expand(STUDENTS, -1, -1), y.expand(STUDENTS, -1, -1), scratch
            elif self.teacher is not None:
                x = rows[:, start : start + size]
                scratch.x.zero_()
                scratch.x[..., : self.d], scratch.x[..., self.d] = x, float(self.rule.bias)
                scratch.y.zero_()
                scratch.y[..., : self.outputs] = self.teacher(x)
                yield scratch.x, scratch.y, scratch
            else:
                part = rows[:, start : start + size].reshape(-1)
                torch.index_select(self.x, 0, part, out=scratch.x_rows)
                torch.index_select(self.y, 0, part, out=scratch.y_rows)
                yield scratch.x, scratch.y, scratch


@contextmanager
def _threads_for(samples: int) -> Iterator[None]:
    """One thread for small batches, where waking the others costs more than they save; no result depends on it."""
    threads = torch.get_num_threads()
    try:
        if samples <= SMALL_BATCH:
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)


def _slots(block: Block, table: Tensor, empty: float) -> Tensor:
    """Columns [T, 8, ..] of a per-student table [T, P, ..]; `empty` where a slot has no student."""
    columns = table[:, [0 if k is None else k for k in block.students]]
    columns[:, [k is None for k in block.students]] = empty
    return columns.contiguous()


def two_layer_sgd(
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
    weight_decay: float,
    negative_slope: float,
    loss_limit: float,
    bias: bool,
    normalize: bool,
    fixed_first: bool,
    fixed_top: bool,
) -> tuple[Tensor, ...]:
    """Weights, momentum buffers (empty without momentum) and diverged steps after `steps` steps."""
    packed = [t.clone(memory_format=torch.contiguous_format) for t in (w1, b1, w2, b2)]
    given = [t for t in (w1_buffer, b1_buffer, w2_buffer, b2_buffer) if t is not None]
    buffers = [t.clone(memory_format=torch.contiguous_format) if momentum else t.new_empty(0) for t in given or packed]
    diverged = diverged_step.clone()
    rule = Rule(momentum, weight_decay, negative_slope, bias, normalize, fixed_first, fixed_top)
    layers = [t for t in (teacher_w1, teacher_b1, teacher_w2, teacher_b2) if t is not None]
    teacher = partial(_answer, layers, negative_slope) if fresh_std else None
    run = Run(x, y, packed, buffers, offsets, rule, teacher)
    run.pack([k for k, step in enumerate(diverged.tolist()) if step < 0])
    samples = (indices.shape[-1] if indices is not None else batch_size) or len(x)
    draw = partial(_rows, run, indices, seeds, first_step, batch_size, fresh_std)
    table = (lr if multipliers is None else multipliers[:, None] * lr).expand(steps, -1)  # [T, P] float64
    words = samples * (x.shape[1] if fresh_std else 1)  # of a student and step
    stride = max(1, DRAWS // max(1, len(seeds) * words))
    with _threads_for(samples):
        for start in range(0, steps if run.blocks else 0, stride):
            window = slice(start, min(start + stride, steps))
            for k, t in run.advance(table[window].to(x.dtype), draw(window), samples, loss_limit):
                diverged[k] = first_step + start + t
    for block in run.blocks:
        for slot in range(STUDENTS):
            run.unpack(block, slot)
    return *packed, *buffers, diverged


def _rows(
    run: Run,
    indices: Tensor | None,
    seeds: Tensor,
    first_step: int,
    batch_size: int,
    fresh_std: float,
    window: slice,
) -> list[Tensor] | None:
    """The batches of every block in a window of steps, as `Run.batches` takes them, [T, 8, ..]; None: all samples."""
    if indices is None and batch_size == 0:
        return None
    if indices is not None:
        table = indices[..., window, :].expand(len(seeds), -1, -1)
    else:
        distinct, which = seeds.unique(return_inverse=True)
        steps = torch.arange(first_step + window.start, first_step + window.stop, device=seeds.device)
        if fresh_std:
            table = fresh_inputs(distinct, steps, batch_size, run.d, fresh_std, run.x.dtype)[which]
        else:
            table = batch_indices(distinct, steps, batch_size, len(run.x))[which]
    return [_slots(block, table.transpose(0, 1), 0) for block in run.blocks]


def _answer(teacher: Sequence[Tensor], negative_slope: float, x: Tensor) -> Tensor:
    """The outputs [8, B, C] of a two-layer teacher w1 [m, d], b1 [m], w2 [m, C], b2 [1, C] to x [8, B, d]."""
    w1, b1, w2, b2 = teacher
    hidden = torch.nn.functional.leaky_relu(x @ w1.mT + b1, negative_slope)
    return hidden @ w2 + b2
