"""`Measurement.all_reduce` over gloo processes: samples split across them give the measurement of a single run."""

from __future__ import annotations

import datetime

import torch
import torch.distributed as dist
import torch.multiprocessing

from fastspec.measure import measure
from fastspec.measurement import Measurement
from fastspec.networks import MLP
from fastspec.population_measurement import PopulationMeasurement
from fastspec.populations import Population

SPLIT = 25


def results(rows: slice) -> tuple[Measurement, PopulationMeasurement]:
    teacher = MLP([6, 4, 3], dtype=torch.float64)
    students = Population.two_layer(teacher, multi=[1, 2], seeds=[0, 1], std=0.5)
    x = torch.randn(90, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)[rows]
    student = MLP.from_weights(students.weights(3))
    return measure(teacher, student, x), measure(teacher, students, x)


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60))
    try:
        one, many = results(slice(SPLIT) if rank == 0 else slice(SPLIT, None))
        one.all_reduce().save(f"{folder}/one {rank}")
        many.all_reduce().save(f"{folder}/many {rank}")
    finally:
        dist.destroy_process_group()


def test_two_processes_get_what_one_would(tmp_path) -> None:
    torch.multiprocessing.spawn(worker, args=(str(tmp_path),), nprocs=2)
    one, many = results(slice(None))
    for rank in range(2):
        mine = Measurement.load(tmp_path / f"one {rank}")
        assert mine.samples == 90
        torch.testing.assert_close(mine.loss, one.loss)
        torch.testing.assert_close(mine.layers["hidden1"].tensors(), one.layers["hidden1"].tensors())
        population = PopulationMeasurement.load(tmp_path / f"many {rank}")
        torch.testing.assert_close(population.loss, many.loss)
        torch.testing.assert_close(population.best_correlation, many.best_correlation)
