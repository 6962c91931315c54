"""One job of a deep run: the students of one width that learn from one set of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from fastspec import data, teachers
from fastspec.experiments.clock import Clock
from fastspec.experiments.console import Advance, Console
from fastspec.experiments.results import TIMINGS, RunFolder
from fastspec.measurement import Measurement
from fastspec.networks import MLP, student_like
from fastspec.ops.backends import default_device
from fastspec.statistics import best, rank_of
from fastspec.tensor_files import load_tensors, save_tensors
from fastspec.theory import backward_gram
from fastspec.training import TrainingHistory, train

if TYPE_CHECKING:
    from pathlib import Path

    from fastspec.experiments.deep import Deep

PART, FOUND = "measurement of a deep run", "findings of a deep job"
GRAM_SAMPLES = 512  # held-out samples over which beta and H are averaged
HELD_OUT_SEED = 1  # of the evaluation samples; training samples have seed 0, fresh ones 2 and above


@dataclass(frozen=True)
class Job:
    """The options of a run, a number of samples, and the students' width in multiples of the teacher's."""

    options: Deep
    samples: int
    multi: int

    @property
    def name(self) -> str:
        return f"n{self.samples}-x{self.multi}"

    @property
    def cost(self) -> float:
        """Multiplications, about: what training and measuring take is proportional to it."""
        o = self.options
        widths = [o.inputs, *(self.multi * nodes for nodes in o.hidden), o.outputs]
        weights = sum(a * b for a, b in pairwise(widths))
        pairs = sum(self.multi * nodes**2 for nodes in o.hidden)
        step, measurement = 3 * o.batch_size * weights, o.evaluation_samples * (weights + pairs)
        return float(o.seeds * (o.steps * step + len(o.snapshots) * measurement))

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.options.dtype)

    def teacher(self) -> MLP:
        o = self.options
        return teachers.separated(
            [o.inputs, *o.hidden, o.outputs],
            seed=o.teacher_seed,
            weight_set=o.weight_set,
            x=self.inputs(o.evaluation_samples, HELD_OUT_SEED) if o.tuned else None,
            dtype=self.dtype,
        )

    def inputs(self, count: int, seed: int) -> Tensor:
        return data.gaussian(count, self.options.inputs, std=self.options.data_std, seed=seed, dtype=self.dtype)

    def finished(self, folder: RunFolder) -> bool:
        return self._found(folder).exists()

    def found(self, folder: RunFolder) -> tuple[list[MLP], dict[str, Tensor]]:
        """The trained students of a finished job, and its findings [seed, step, ...]."""
        students = [MLP.load(self._student(folder, seed)) for seed in range(self.options.seeds)]
        return students, load_tensors(self._found(folder), FOUND)[0]

    def work(self, folder: RunFolder, advance: Advance, clock: Clock) -> None:
        """Train and measure, from the start or from where an earlier run was interrupted; what is found is kept in the
        folder's parts."""
        teacher, groups, rows = self.teacher().to(default_device()), list(self._groups()), []
        for done, seeds in enumerate(groups):
            report = _share(advance, done, len(groups))
            history, students = self._train(folder, teacher, seeds, report, clock)
            if not all(self._part(folder, seeds, step).exists() for step in self._measured(history)):
                self._checkpoint(folder, seeds).unlink()  # an interruption at the wrong moment has cost a measurement
                history, students = self._train(folder, teacher, seeds, report, clock)
            clock.lap(self.name, "training")
            for seed, student in zip(seeds, students, strict=True):
                student.save(self._student(folder, seed))
            rows.append(self._findings(folder, seeds, history))
        save_tensors(self._found(folder), FOUND, {name: torch.cat([row[name] for row in rows]) for name in rows[0]})
        clock.lap(self.name, "evaluation")
        clock.save()
        self.clean(folder)

    def clean(self, folder: RunFolder) -> None:
        """Remove what a finished job has no more use for."""
        for seeds in self._groups():
            for step in self.options.snapshots:
                self._part(folder, seeds, step).unlink(missing_ok=True)
            self._checkpoint(folder, seeds).unlink(missing_ok=True)

    def _groups(self) -> Iterator[range]:
        """Seeds of students that learn side by side: all, but with batch norm each alone."""
        seeds = range(self.options.seeds)
        return iter([seeds]) if self.options.batch_norm == "none" else (seeds[k : k + 1] for k in seeds)

    def _train(
        self, folder: RunFolder, teacher: MLP, seeds: range, advance: Advance, clock: Clock
    ) -> tuple[TrainingHistory, list[MLP]]:
        o, device = self.options, default_device()
        norm = None if o.batch_norm == "none" else o.batch_norm
        students = [student_like(teacher, multi=self.multi, seed=seed, batch_norm=norm) for seed in seeds]
        held_out = self.inputs(o.evaluation_samples, HELD_OUT_SEED).to(device)
        fixed = None if o.fresh else self.inputs(self.samples, 0).to(device)

        def fresh(epoch: int) -> Tensor:
            return self.inputs(self.samples, 2 + epoch).to(device)

        def on_snapshot(step: int, measured: Measurement | None) -> None:
            assert measured is not None
            clock.lap(self.name, "training")
            found = _recorded(measured.to("cpu"), len(seeds))
            found |= _backward(teacher, students, held_out[:GRAM_SAMPLES])
            save_tensors(self._part(folder, seeds, step), PART, found)
            clock.lap(self.name, "evaluation")
            clock.save()

        history = train(
            teacher,
            students if norm is None else students[0],
            fresh if fixed is None else fixed,
            steps=o.steps,
            batch_size=o.batch_size,
            lr=o.lr * 2 / o.outputs,  # of the mean over samples of 1/2 |teacher - student|^2
            schedule={o.lr_drop_epoch: o.lr_drop} if o.lr_drop_epoch else None,
            momentum=o.momentum,
            weight_decay=o.weight_decay,
            normalize=o.normalize,
            seed=list(seeds),
            evaluation=held_out,
            snapshots=o.snapshots,
            on_snapshot=on_snapshot,
            checkpoint=self._checkpoint(folder, seeds),
            progress=advance,
        )
        return history, [student.cpu() for student in students]

    def _measured(self, history: TrainingHistory) -> list[int]:
        """The snapshots that training came to."""
        return [step for step in self.options.snapshots if step <= history.steps]

    def _findings(self, folder: RunFolder, seeds: range, history: TrainingHistory) -> dict[str, Tensor]:
        """What the results have of the students of some seeds, [seed, step, ...]; NaN and -1 after all diverged."""
        steps = self._measured(history)
        parts = [load_tensors(self._part(folder, seeds, step), PART)[0] for step in steps]
        layers, widest = range(len(self.options.hidden)), max(self.options.hidden)
        winners = [best(parts[-1][f"correlation{layer}"]).indices for layer in layers]
        rows: list[dict[str, Tensor]] = []
        for part in parts:
            rho = [part[f"correlation{layer}"] for layer in layers]
            its, own = [best(r) for r in rho], [best(r.mT) for r in rho]
            row = {name: part[name] for name in ("loss", "constant_teachers", "constant_students")}
            row["layer_score"] = torch.stack([b.values.double().nanmean(-1) for b in its], 1)
            row["best_correlation"] = _padded([b.values for b in its], widest)
            row["best_student"] = _padded([b.indices.int() for b in its], widest, -1)
            row["rank"] = _padded([rank_of(w, r).float() for w, r in zip(winners, rho, strict=True)], widest)
            row["max_correlation"] = _padded([b.values for b in own], widest * self.multi)
            row["strength"] = _padded([part[f"strength{layer}"] for layer in layers], widest * self.multi)
            for name in ("beta", "h"):
                norms = [block_norms(part[f"{name}{layer}"], winners[layer][0]) for layer in layers]
                row[f"{name}_blocks"] = _first_of(torch.stack(norms), len(seeds))
            rows.append(row)
        found = {name: torch.stack([row[name] for row in rows], 1) for name in rows[0]}
        found["loss_train"] = _since_last(history.loss.view(len(seeds), -1), steps)
        missing = len(self.options.snapshots) - len(steps)
        found = {name: _longer(table, missing) for name, table in found.items()}
        found["diverged_step"] = history.diverged_step.view(len(seeds))
        return found

    def _part(self, folder: RunFolder, seeds: range, step: int) -> Path:
        return folder.part(f"{self.name}.seeds{seeds[0]}-{seeds[-1]}.step{step}.safetensors")

    def _checkpoint(self, folder: RunFolder, seeds: range) -> Path:
        return folder.part(f"{self.name}.seeds{seeds[0]}-{seeds[-1]}.checkpoint")

    def _student(self, folder: RunFolder, seed: int) -> Path:
        return folder.part(f"{self.name}.student{seed}.safetensors")

    def _found(self, folder: RunFolder) -> Path:
        return folder.part(f"{self.name}.found.safetensors")


def work_through(jobs: Sequence[Job], folder: RunFolder, console: Console) -> None:
    """Do all jobs, or what an earlier run has left of them."""
    with console.study({job.name: job.cost for job in jobs}) as study:
        clock = Clock(folder.path / TIMINGS, folder.timings())
        for job in jobs:
            if job.finished(folder):
                study.found(job.name)
                job.clean(folder)
                continue
            with study.job(job.name) as advance:
                job.work(folder, advance, clock)
            took = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in clock.seconds[job.name].items())
            console.say(f"{job.name}: {took}")


def _recorded(measured: Measurement, students: int) -> dict[str, Tensor]:
    """Of a snapshot: loss [P], correlation<layer> [P, m, n] float32, constant nodes [P, layers]."""
    assert measured.loss is not None
    layers = list(measured.layers.values())
    constant = [moments.undefined_nodes() for moments in layers]
    found = {f"correlation{i}": _with_population(m.correlation().float(), 3) for i, m in enumerate(layers)}
    return found | {
        "loss": _with_population(measured.loss, 1),
        "constant_teachers": torch.stack([c.teacher.expand(students) for c in constant], 1),
        "constant_students": torch.stack([c.student.expand(students) for c in constant], 1),
    }


def _backward(teacher: MLP, students: list[MLP], x: Tensor) -> dict[str, Tensor]:
    """strength<layer> [P, n], and beta<layer> and h<layer> [n, n] of the first student, float32."""
    grams = [list(backward_gram(teacher, student.eval(), x, progress=False).values()) for student in students]
    found = {}
    for layer, parts in enumerate(zip(*grams, strict=True)):
        found[f"strength{layer}"] = torch.stack([gram.strength() for gram in parts])
        found[f"beta{layer}"], found[f"h{layer}"] = parts[0].beta_student_student, parts[0].h_student_student
    return {name: table.float().cpu() for name, table in found.items()}


def block_norms(matrix: Tensor, winners: Tensor) -> Tensor:
    """Frobenius norms [3] of the blocks of a matrix [n, n]: among winners, between winners and others, among others."""
    wins = torch.zeros(len(matrix), dtype=torch.bool)
    wins[winners[winners >= 0]] = True
    return torch.stack([matrix[a][:, b].norm() for a, b in ((wins, wins), (wins, ~wins), (~wins, ~wins))])


def _with_population(table: Tensor, axes: int) -> Tensor:
    return table if table.dim() == axes else table.unsqueeze(0)


def _padded(layers: list[Tensor], nodes: int, value: float = torch.nan) -> Tensor:
    """Tables [P, nodes of a layer] as [P, layer, nodes]."""
    return torch.stack([pad(layer, (0, nodes - layer.shape[-1]), value=value) for layer in layers], 1)


def _first_of(table: Tensor, students: int) -> Tensor:
    """What is known of the first student alone, as [P, ...]."""
    rest = table.new_full((students - 1, *table.shape), torch.nan)
    return torch.cat([table[None], rest])


def _longer(table: Tensor, steps: int) -> Tensor:
    """[P, step, ...] with more steps, of which nothing is known."""
    unknown = torch.nan if table.is_floating_point() else -1
    return torch.cat([table, table.new_full((len(table), steps, *table.shape[2:]), unknown)], 1)


def _since_last(loss: Tensor, steps: list[int]) -> Tensor:
    """Means of batch losses [P, all steps] between one measurement and the next, [P, step]; NaN for the first."""
    means = [loss[:, a:b].mean(1) for a, b in pairwise(steps)]
    return torch.stack([torch.full_like(loss[:, 0], torch.nan), *means], 1)


def _share(advance: Advance, done: int, groups: int) -> Callable[[int, int], None]:
    """Progress of one of several trainings as that of all."""
    return lambda step, steps: advance(done * steps + step, groups * steps)
