"""A population trained by two gloo processes: the result of one, to the bit, on both."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

import fastspec as fs

STEPS = 40


def problem() -> tuple[fs.MLP, fs.Population, torch.Tensor]:
    teacher = fs.teachers.two_layer(d=7, m=4, c=3, seed=0)
    students = fs.Population.two_layer(teacher, multi=[1, 3, 2], seeds=[0, 5, 9], std=0.3)
    return teacher, students, fs.data.gaussian(60, 7, seed=1)


def options(students: int, folder: Path | None = None) -> dict:
    return {
        "steps": STEPS,
        "batch_size": 8,
        "lr": torch.linspace(0.01, 0.05, students).tolist(),
        "momentum": 0.5,
        "snapshots": [0, 10, STEPS],
        "checkpoint": None if folder is None else folder / "run",
    }


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60))
    try:
        teacher, students, x = problem()
        group = dist.group.WORLD
        again = []
        for _ in range(2):  # the second goes on from the end of the first
            again.append(fs.train_two_layer(teacher, students, x, group=group, **options(len(students), Path(folder))))
        indices = torch.arange(9 * 6 * 4).view(9, 6, 4) % 60
        own = fs.train_two_layer(teacher, students, x, steps=6, indices=indices, group=group)
        torch.save(
            [(h.population.packed, h.diverged_step, h.population.labels) for h in (*again, own)], f"{folder}/{rank}"
        )
        torch.save([again[0].snapshots[10].packed], f"{folder}/snapshot {rank}")
        with pytest.raises(ValueError, match="students: got 1 students for 2 processes"):
            fs.train_two_layer(teacher, students.select([0]), x, steps=1, group=group)
        with pytest.raises(ValueError, match="on_snapshot: got a function together with a group"):
            fs.train_two_layer(teacher, students, x, steps=1, on_snapshot=print, group=group)
    finally:
        dist.destroy_process_group()


def test_two_processes_train_what_one_would(tmp_path) -> None:
    torch.multiprocessing.spawn(worker, args=(str(tmp_path),), nprocs=2)
    teacher, students, x = problem()
    one = fs.train_two_layer(teacher, students, x, **options(len(students)))
    indices = torch.arange(9 * 6 * 4).view(9, 6, 4) % 60
    own = fs.train_two_layer(teacher, students, x, steps=6, indices=indices)
    for rank in range(2):
        first, again, with_indices = torch.load(tmp_path / str(rank), weights_only=False)
        for (weights, diverged, labels), alone in ((first, one), (again, one), (with_indices, own)):
            assert all(torch.equal(a, b) for a, b in zip(weights, alone.population.packed, strict=True))
            assert torch.equal(diverged, alone.diverged_step) and labels == students.labels
        (snapshot,) = torch.load(tmp_path / f"snapshot {rank}", weights_only=False)
        assert all(torch.equal(a, b) for a, b in zip(snapshot, one.snapshots[10].packed, strict=True))
        assert (tmp_path / f"run.process{rank}").exists()
