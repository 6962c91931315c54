"""A run of `train`: steps, snapshots, checkpoints, and the end."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from fastspec.measurement import Measurement, pack, rebuilt
from fastspec.ops.checks import refuse
from fastspec.progress import Progress
from fastspec.tensor_files import load_tensors, save_tensors
from fastspec.training.checkpoints import check_fingerprint, digest
from fastspec.training.interrupts import deferred
from fastspec.training.lessons import Lessons
from fastspec.training.two_layer import CHECKPOINT_SECONDS, Pace
from fastspec.training.updates import ByAutograd, Updates

OnSnapshot: TypeAlias = "Callable[[int, Measurement | None], object]"
Report: TypeAlias = "Callable[[int, int], object]"
KIND = "train checkpoint"
TOGETHER = 32  # steps that the processes of a group make between two agreements
MEASURED, UPDATES = "measured.", "updates."  # prefixes of a checkpoint's tensors


@dataclass
class State:
    """How far a run has come."""

    loss: Tensor  # [*P, steps], NaN where no step was made
    step: int = 0
    reported: int = -1  # the last step whose snapshot is done
    measurements: dict[int, Measurement] = field(default_factory=dict)


def fingerprint(options: Mapping[str, object], lessons: Lessons, updates: Updates) -> dict[str, object]:
    """What a checkpoint must agree on: options, data, answers, first weights, and the optimizer's own options."""
    x, y = lessons.first
    tensors, rest = updates.state()
    found = {**options, "data": digest(x), "answers": digest(y)}
    found |= {f"student, {name}": digest(tensor) for name, tensor in tensors.items()}
    if isinstance(updates, ByAutograd):
        found["optimizer"] = f"{type(updates.optimizer).__name__} {rest}"
    return found


class Run:
    """Steps from where the run is to its end.

    measured: makes the networks up to date, and measures them or not; keeps: whether what it finds is kept here.
    """

    def __init__(
        self,
        lessons: Lessons,
        updates: Updates,
        rates: Tensor,
        stops: set[int],
        measured: Callable[[], Measurement | None],
        keeps: bool,
        on_snapshot: OnSnapshot | None,
        group: dist.ProcessGroup | None,
    ):
        self.lessons, self.updates, self.rates, self.stops = lessons, updates, rates, stops
        self.measured, self.on_snapshot, self.group = measured, on_snapshot, group
        self.keeps = keeps and on_snapshot is None
        self.state = State(torch.full((*updates.diverged_step.shape, len(rates)), torch.nan, dtype=torch.float64))
        self.path: str | os.PathLike | None = None
        self.fingerprint: dict[str, object] = {}
        self.within = False  # a step, after which alone there is something to save

    @property
    def leads(self) -> bool:
        """Whether this process is the one that saves and says how far things are."""
        return self.group is None or dist.get_rank(self.group) == 0

    @property
    def over(self) -> bool:
        return self.state.step == len(self.rates) or bool((self.updates.diverged_step >= 0).all())

    def resume(self, path: str | os.PathLike, fingerprint: dict[str, object]) -> None:
        """Save to `path` from now on, and go on from what is there; ValueError for what does not belong to this run."""
        self.path, self.fingerprint = path, fingerprint
        if not Path(path).exists():
            return
        tensors, metadata = load_tensors(path, KIND)
        try:
            check_fingerprint(path, json.loads(metadata["fingerprint"]), fingerprint)
            known = json.loads(metadata["state"])
            step, reported = int(known["step"]), int(known["reported"])
            self._check_reach(step, reported, known["measured"])
            found = rebuilt(_part(tensors, MEASURED), known["descriptions"])
            self.state.step, self.state.reported = step, reported
            self.state.measurements = dict(zip(known["measured"], found, strict=True))
            loss = tensors["loss"][..., : len(self.rates)]
            self.state.loss[..., : loss.shape[-1]] = loss
            self.updates.load(_part(tensors, UPDATES), metadata["updates"])
        except (LookupError, TypeError, json.JSONDecodeError) as error:
            refuse(f"path {os.fspath(path)!r}", f"a damaged file ({error})", f"a fastspec {KIND} file")

    def _check_reach(self, step: int, reported: int, measured: Sequence[int]) -> None:
        """Check that a checkpoint is not beyond what is asked for."""
        assert self.path is not None
        place = f"checkpoint {os.fspath(self.path)!r}"
        if step > len(self.rates):
            refuse("steps", len(self.rates), f"at least {step}, the steps already made in {place}")
        lost = {stop for stop in self.stops if stop <= reported} - set(measured)
        if lost and self.keeps:
            refuse("snapshots", sorted(lost), f"later steps than {reported}, or those that {place} kept")

    def go(self, checkpoint_every: int | None, progress: bool | Report | None) -> None:
        """Make all steps."""
        state, steps = self.state, len(self.rates)
        shown = False if callable(progress) or not self.leads else progress
        pace, saved = Pace(), time.monotonic()
        with deferred() as asked, Progress("training", steps, "steps", shown) as bar:
            try:
                bar.advance(state.step)
                while True:
                    if state.step in self.stops and state.reported < state.step:
                        self._snapshot()
                    if callable(progress):
                        progress(state.step, steps)
                    if self.over:
                        break
                    until = self._until(TOGETHER if self.group else pace.steps, checkpoint_every)
                    with pace(until - state.step):
                        self._advance(until)
                    late = time.monotonic() - saved > CHECKPOINT_SECONDS
                    due = late if checkpoint_every is None else state.step % checkpoint_every == 0
                    due, stop = self._agreed(due, asked())
                    if due:
                        self._save()
                        saved = time.monotonic()
                    bar.advance(state.step - bar.done)
                    if stop:
                        raise KeyboardInterrupt
            except KeyboardInterrupt:
                if not self.within:
                    self._save()
                again = f"; the same call goes on from {os.fspath(self.path)!r}" if self.path is not None else ""
                raise KeyboardInterrupt(f"training stopped after step {state.step} of {steps}{again}") from None
            self.updates.put_back()
            self._save()

    def _until(self, most: int, checkpoint_every: int | None) -> int:
        """Where to stop next: not beyond a snapshot, a checkpoint, or the data of an epoch."""
        step, epoch = self.state.step, self.lessons.epoch_steps
        ends = [step + most, len(self.rates), *(s for s in self.stops if s > step)]
        if not self.lessons.fixed:
            ends.append((step // epoch + 1) * epoch)
        if checkpoint_every is not None:
            ends.append((step // checkpoint_every + 1) * checkpoint_every)
        return min(ends)

    def _advance(self, until: int) -> None:
        state = self.state
        self.within = True
        for batches in self.lessons.batches(state.step, until - state.step):
            end = state.step + batches.indices.shape[-2]
            window = slice(state.step, end)
            state.loss[..., window] = self.updates.advance(batches, self.rates[window], state.step)
            state.step = end
            if self.over:
                break
        stopped = self.updates.diverged_step
        if bool((stopped >= 0).all()):
            state.step = int(stopped.max())
        self.within = False

    def _snapshot(self) -> None:
        found = self.measured()
        if self.on_snapshot is not None:
            self.on_snapshot(self.state.step, found)
        elif found is not None:
            self.state.measurements[self.state.step] = found
        self.state.reported = self.state.step

    def _agreed(self, due: bool, stop: bool) -> tuple[bool, bool]:
        """Whether any process of the group is due, or to stop."""
        if self.group is None:
            return due, stop
        wishes = torch.tensor([due, stop], dtype=torch.int64)
        dist.all_reduce(wishes, dist.ReduceOp.MAX, group=self.group)
        return bool(wishes[0]), bool(wishes[1])

    def _save(self) -> None:
        if self.path is None:
            return
        if self.leads:
            tensors, rest = self.updates.state()
            state, (measured, descriptions) = self.state, pack(list(self.state.measurements.values()))
            saved = {f"{UPDATES}{name}": tensor for name, tensor in tensors.items()}
            saved |= {f"{MEASURED}{name}": tensor for name, tensor in measured.items()}
            saved["loss"] = state.loss[..., : state.step + 1]  # that of a step not made is NaN, or that of divergence
            known = {"step": state.step, "reported": state.reported, "measured": list(state.measurements)}
            known["descriptions"] = descriptions
            marks = {"fingerprint": json.dumps(self.fingerprint), "state": json.dumps(known), "updates": rest}
            save_tensors(self.path, KIND, saved, **marks)
        if self.group is not None:
            dist.barrier(self.group)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of one prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
