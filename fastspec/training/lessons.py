"""What a network is to learn: inputs and answers of every epoch, and the batches of every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from fastspec.adapters import check_placement, evaluation_mode, forward
from fastspec.ops.checks import FLOATING, check_finite, refuse, shape
from fastspec.randomness import generator

Loss: TypeAlias = Literal["squared", "cross_entropy"]
Inputs: TypeAlias = "Tensor | Callable[[int], Tensor]"
ANSWERED = 4096  # samples that a teacher answers at a time
NOISY = 2**22  # elements of noisy inputs that are made at a time


class Batches(NamedTuple):
    """The batches of some steps: rows of x and y by number, [steps, batch], or [P, steps, batch] for each student."""

    x: Tensor  # [N, ...]
    y: Tensor  # [N, C], or labels [N] int64
    indices: Tensor


class Lessons:
    """Inputs by epoch, the teacher's answers to them, and which samples each student sees at each step."""

    def __init__(
        self,
        teacher: nn.Module | Tensor,
        students: Sequence[nn.Module],
        data: Inputs,
        loss: Loss | None,
        *,
        batch_size: int,
        replacement: bool,
        input_noise: float,
        seeds: Sequence[int],
    ):
        self.teacher, self.students, self.data = teacher, students, data
        self.batch_size, self.replacement, self.noise, self.seeds = batch_size, replacement, input_noise, seeds
        self._epoch, self._x, self._y = -1, torch.empty(0), torch.empty(0)
        if not isinstance(data, Tensor) and not callable(data):
            refuse(
                "data",
                type(data).__name__,
                "a tensor [samples, ...], or a function of the epoch that gives one",
                TypeError,
            )
        x = self._inputs(0)
        self.samples = len(x)
        if not replacement and self.samples < batch_size:
            refuse("batch_size", batch_size, f"at most the {self.samples} samples of an epoch, or replacement=True")
        self.epoch_steps = max(1, self.samples // batch_size)
        self.outputs = self._check(x)
        labels = isinstance(teacher, Tensor) and teacher.dtype == torch.int64
        if loss not in (None, "squared", "cross_entropy"):
            refuse("loss", repr(loss), "'squared', 'cross_entropy' or None")
        if labels and loss == "squared":
            refuse("loss", "'squared' with labels as teacher", "'cross_entropy'")
        self.loss: Loss = loss or ("cross_entropy" if labels else "squared")
        self._load(0)

    @property
    def fixed(self) -> bool:
        """Whether every epoch has the same inputs."""
        return isinstance(self.data, Tensor)

    @property
    def first(self) -> tuple[Tensor, Tensor]:
        """Inputs and answers of the first epoch."""
        self._load(0)
        return self._x, self._y

    def scale(self) -> float:
        """The loss of a student that answers 0, on the first epoch's samples."""
        _, y = self.first
        if y.dtype == torch.int64:
            return 1.0
        return float(y.double().square().sum(1).mean() / 2)

    def batches(self, first: int, steps: int) -> Iterator[Batches]:
        """The batches of steps `first` .. `first + steps - 1` in pieces that fit in memory; of one epoch if data differ
        from epoch to epoch."""
        self._load(first // self.epoch_steps)
        tables = [self._rows(seed, first, steps) for seed in self.seeds]
        indices = torch.stack(tables) if len(tables) > 1 else tables[0]  # [*P, steps, batch]
        if not self.noise:
            yield Batches(self._x, self._y, indices.to(self._x.device))
            return
        piece = max(1, NOISY // (self._x[0].numel() * self.batch_size * len(tables)))
        for at in range(0, steps, piece):
            yield self._noisy(indices[..., at : at + piece, :], first + at)

    def _noisy(self, indices: Tensor, first: int) -> Batches:
        steps = indices.shape[-2]
        x = self._x[indices.flatten().to(self._x.device)]
        noise = [
            torch.randn((self.batch_size, *x.shape[1:]), generator=generator(seed, f"input noise of step {step}"))
            for seed in self.seeds
            for step in range(first, first + steps)
        ]
        x = x + self.noise * torch.cat(noise).to(x)
        known = isinstance(self.teacher, Tensor)
        rows = indices.flatten().to(self._y.device)
        # one batch at a time, in memory of its own: a BLAS may round by how many samples there are, and where they lie
        y = self._y[rows] if known else torch.cat([self._answers(part.clone()) for part in x.split(self.batch_size)])
        return Batches(x, y, torch.arange(len(x), device=x.device).view(indices.shape))

    def _rows(self, seed: int, first: int, steps: int) -> Tensor:
        """The samples of every batch of some steps, [steps, batch]."""
        epoch, start = divmod(first, self.epoch_steps)
        tables = [self._rows_of_epoch(seed, e) for e in range(epoch, (first + steps - 1) // self.epoch_steps + 1)]
        return (torch.cat(tables) if len(tables) > 1 else tables[0])[start : start + steps]

    def _rows_of_epoch(self, seed: int, epoch: int) -> Tensor:
        """The samples of every batch of an epoch, [epoch_steps, batch]."""
        draw = generator(seed, f"batches of epoch {epoch}")
        size = (self.epoch_steps, self.batch_size)
        if self.replacement:
            return torch.randint(self.samples, size, generator=draw)
        return torch.randperm(self.samples, generator=draw)[: size[0] * size[1]].view(size)

    def _load(self, epoch: int) -> None:
        if epoch == self._epoch or (self.fixed and self._epoch >= 0):
            return
        x = self._inputs(epoch)
        if len(x) != self.samples:
            refuse(f"data of epoch {epoch}", shape(x), f"the {self.samples} samples of the first epoch")
        y = self.teacher if isinstance(self.teacher, Tensor) else self._answers(x)
        self._epoch, self._x, self._y = epoch, x, y.detach()

    def _inputs(self, epoch: int) -> Tensor:
        x = self.data if isinstance(self.data, Tensor) else self.data(epoch)
        name = "data" if isinstance(self.data, Tensor) else f"data of epoch {epoch}"
        if not isinstance(x, Tensor):
            refuse(name, type(x).__name__, "a tensor [samples, ...]", TypeError)
        if x.dtype not in FLOATING:
            refuse(name, f"dtype {x.dtype}", "float64, float32, float16 or bfloat16", TypeError)
        if x.dim() < 2 or len(x) == 0:
            refuse(name, shape(x), "[samples, ...], one sample or more")
        check_finite(name, x)
        return x

    @torch.no_grad()
    def _answers(self, x: Tensor) -> Tensor:
        """The teacher's outputs [N, C], or the number of the largest [N]."""
        assert isinstance(self.teacher, nn.Module)
        with evaluation_mode(self.teacher):
            y = torch.cat([forward("teacher", self.teacher, part) for part in x.split(ANSWERED)])
        check_finite("teacher outputs", y)
        return y.argmax(1) if self.loss == "cross_entropy" else y

    @torch.no_grad()
    def _check(self, x: Tensor) -> int:
        """Check that teacher, students and inputs fit each other; the number of outputs."""
        for network in self.students:
            check_placement("data", x, student=network)
        with evaluation_mode(*self.students):
            outputs = [_outputs("student", network, x) for network in self.students]
        if isinstance(self.teacher, nn.Module):
            check_placement("data", x, teacher=self.teacher)
            with evaluation_mode(self.teacher):
                theirs = _outputs("teacher", self.teacher, x)
            if theirs != outputs[0]:
                refuse("teacher", f"{theirs} outputs", f"a teacher with the {outputs[0]} outputs of the student")
        else:
            self._check_answers(x, outputs[0])
        return outputs[0]

    def _check_answers(self, x: Tensor, outputs: int) -> None:
        y = self.teacher
        takes = f"a Module, labels int64 [{len(x)}], or answers [{len(x)}, {outputs}] of data's dtype"
        if not isinstance(y, Tensor):
            refuse("teacher", type(y).__name__, takes, TypeError)
        labels = y.dtype == torch.int64
        if not labels and not isinstance(self.data, Tensor):
            refuse(
                "teacher", "outputs for fixed inputs, with a function as data", "a Module, labels, or data as tensor"
            )
        if not labels and y.dtype != x.dtype:
            refuse("teacher", f"dtype {y.dtype}", takes, TypeError)
        if y.shape != ((len(x),) if labels else (len(x), outputs)):
            refuse("teacher", shape(y), takes)
        if y.device != x.device:
            refuse("teacher", f"device {y.device}", f"the device of data, {x.device}")
        if not labels:
            return check_finite("teacher", y)
        low, high = (int(label) for label in y.aminmax())
        if low < 0 or high >= outputs:
            refuse("teacher", f"labels from {low} to {high}", f"labels in [0, {outputs}), the student's outputs")
        return None


def _outputs(side: str, network: nn.Module, x: Tensor) -> int:
    """The outputs of a network, from its answer to one sample."""
    out = forward(side, network, x[:1])
    if not isinstance(out, Tensor) or out.dim() != 2:
        got = shape(out) if isinstance(out, Tensor) else type(out).__name__
        refuse(side, f"outputs of {got}", "a network with outputs [samples, outputs]")
    return out.shape[1]
