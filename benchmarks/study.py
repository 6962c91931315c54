"""The two-layer study (Student Specialization, Tian, ICML 2020) foretold from one epoch of three of its jobs.

A job is one teacher and its 128 students; an epoch is 1000 steps and one snapshot of all students: what the experiment
records of them on training and held-out samples. A few snapshots have the gradients of every sample as well.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

import fastspec as fs
from benchmarks.gate import WrongResultError
from benchmarks.harness import Entry, Options, interleave, target
from benchmarks.training import BATCH, INPUTS, LR, OUTPUTS, SAMPLES, STD, Training, judge, student_errors
from benchmarks.training_peers import serial_lean
from fastspec.experiments.snapshots import per_sample_gradient, snapshot
from fastspec.experiments.two_layer import ICML2020

TEACHERS, MULTI, SEEDS, STEPS = (5, 10, 20), (1, 2, 5, 10), 32, 1000
DECAYS, EPOCHS = 6, 100  # the study has a job for every teacher size and strength decay; the decay does not cost time
SNAPSHOTS, GRADIENTS = len(ICML2020.snapshots), len(ICML2020.gradient_steps)  # of a job
MINUTES = {torch.float32: 45.0, torch.float64: 90.0}  # wanted for the whole study
CHECKED = 96  # steps after which a few students are compared with float64
MEASURED = 1e-5  # largest error of a correlation, and of a loss relative to it


class Job:
    """A teacher of strength decay 1 and its students."""

    def __init__(self, nodes: int, seeds: int, dtype: torch.dtype):
        self.teacher = fs.teachers.two_layer(INPUTS, nodes, OUTPUTS, strength_decay=1.0, dtype=dtype)
        self.students = fs.Population.two_layer(self.teacher, multi=MULTI, seeds=range(seeds))
        self.x, self.held_out = (fs.data.gaussian(SAMPLES, INPUTS, std=STD, seed=s, dtype=dtype) for s in (0, 1))

    def train(self, steps: int) -> fs.Population:
        history = fs.train_two_layer(
            self.teacher, self.students, self.x, steps=steps, batch_size=BATCH, lr=LR, progress=False
        )
        return history.population

    def snapshot(self, students: fs.Population) -> dict[str, Tensor]:
        return snapshot(self.teacher, students, self.x, self.held_out, ICML2020.levels)

    def gradient(self, students: fs.Population) -> dict[str, Tensor]:
        return per_sample_gradient(self.teacher, students, self.x)


def check(job: Job, students: fs.Population, measured: Mapping[str, Tensor]) -> Entry:
    """Errors of two students of every width after `CHECKED` steps, and of their snapshot on held-out samples.

    Raises WrongResultError where they are too large for the dtype.
    """
    few = [k for k, seed in enumerate(students.labels["seed"]) if seed < 2]
    errors = []
    for k in few:
        start, result = (Training.of(job.teacher, p.select([k]), job.x, CHECKED) for p in (job.students, students))
        errors.append(student_errors(result.weights, serial_lean(start.to(torch.float64))))
    found = judge("training", torch.cat(errors), job.x.dtype)
    loss, best = (torch.stack(part) for part in zip(*(_measured(job, students, k) for k in few), strict=True))
    found["rho"] = float((measured["best_correlation"][few] - best).abs().max())
    found["loss"] = float((measured["loss"][few] / loss - 1).abs().max())
    if not (found["rho"] <= MEASURED and found["loss"] <= MEASURED):
        got = f"errors against float64 of {found['rho']:.3g} in correlations, {found['loss']:.3g} in losses"
        raise WrongResultError(f"measuring: got {got}, limit {MEASURED:g}")
    return found


@torch.no_grad()
def _measured(job: Job, students: fs.Population, k: int) -> tuple[Tensor, Tensor]:
    """Loss, and the best correlation of every teacher node, of student `k` on the held-out samples in float64."""
    networks = [fs.MLP.from_weights(layers).double() for layers in (job.teacher.weights(), students.weights(k))]
    (t, y), (s, f) = (network.activations_and_output(job.held_out.double()) for network in networks)
    m = t[0].shape[1]
    rho = torch.corrcoef(torch.cat([t[0], s[0]], dim=1).T)[:m, m:]
    return (y - f).square().sum(1).mean() / 2, rho.nan_to_num(-1.0).amax(1)


def foretell(options: Options) -> Entry:
    """Body of a result file: the seconds of an epoch of every job, and the targets of the whole study."""
    seeds, steps = (2, 16) if options.quick else (SEEDS, STEPS)
    rows, targets = [], []
    for dtype, minutes in MINUTES.items():
        found = [_epoch(Job(nodes, seeds, dtype), steps, options) for nodes in TEACHERS]
        rows += found
        if not options.quick:
            targets += _targets(found, str(dtype).removeprefix("torch."), minutes)
    return {"study": rows, "targets": targets}


def _epoch(job: Job, steps: int, options: Options) -> Entry:
    """Seconds of one job's epoch; none if its results are wrong."""
    row: Entry = {
        "dtype": str(job.x.dtype).removeprefix("torch."),
        "teacher": job.teacher.hidden_widths[0],
        "students": len(job.students),
        "steps": steps,
    }
    students = job.train(CHECKED)
    try:
        row["error"] = check(job, students, job.snapshot(students))
    except WrongResultError as wrong:
        return {**row, "wrong": str(wrong)}
    calls = {
        "training": lambda: job.train(steps),
        "measuring": lambda: job.snapshot(students),
        "gradient": lambda: job.gradient(students),
    }
    for name, timing in interleave(calls, options.rounds).items():
        row |= {f"{name}_s": timing.median, f"{name}_rounds_s": list(timing.rounds.values())}
    form = "  {dtype}, {teacher} teacher nodes: {training_s:.2f} + {measuring_s:.2f} s; gradients {gradient_s:.2f} s"
    print(form.format(**row), file=sys.stderr)
    return row


def _targets(rows: Sequence[Entry], dtype: str, minutes: float) -> list[Entry]:
    training, measuring, gradient = (
        sum(row.get(f"{name}_s", math.nan) for row in rows) * times
        for name, times in {"training": EPOCHS, "measuring": SNAPSHOTS, "gradient": GRADIENTS}.items()
    )
    measuring += gradient
    whole = DECAYS * (training + measuring) / 60
    return [
        target(f"the whole study in {dtype}", whole, at_most=minutes, unit=" min"),
        target(f"measuring against training, {dtype}", measuring / training, at_most=1.0),
    ]
