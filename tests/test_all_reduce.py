"""`CrossMoments.all_reduce` over gloo processes: the merged moments are those of a single run."""

from __future__ import annotations

import datetime
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing

from fastspec.moments import CrossMoments, cross_moments

SAMPLES, M, N, P = 90, 3, 5, 2
CONSTANT = 0.015  # of the last teacher and student node; 90 times it, divided by 90, is another number


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """A mean that moves by far more than the deviations of one process's samples, where raw sums would cancel."""
    generator = torch.Generator().manual_seed(0)
    drift = torch.linspace(1e5, 2e5, SAMPLES, dtype=torch.float64).unsqueeze(-1)
    t = torch.randn(SAMPLES, M, generator=generator, dtype=torch.float64) + drift
    s = torch.randn(P, SAMPLES, N, generator=generator, dtype=torch.float64) + drift
    t[:, -1], s[..., -1] = CONSTANT, CONSTANT
    return t, s


def share(start: int, stop: int) -> CrossMoments:
    t, s = data()
    if start == stop:
        return CrossMoments.zeros(M, N, population=P, coactivation=True, grams=True)
    return cross_moments(t[start:stop], s[:, start:stop], coactivation=True, grams=True)


CASES = {"uneven": (30, SAMPLES), "first rank empty": (0, SAMPLES), "last rank empty": (SAMPLES, SAMPLES)}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60))
    try:
        for name, (split, stop) in CASES.items():
            share(*((0, split) if rank == 0 else (split, stop))).all_reduce().save(f"{folder}/{name} {rank}")
        nothing = CrossMoments.zeros(M, N).all_reduce()
        assert int(nothing.count) == 0
        for what in ("nodes", "coactivation", "grams"):
            options = {what: rank == 0} if what != "nodes" else {}
            try:
                CrossMoments.zeros(M, N + rank * (what == "nodes"), **options).all_reduce()
            except ValueError as error:
                Path(f"{folder}/{what} {rank}").write_text(str(error))
    finally:
        dist.destroy_process_group()


def test_two_processes_get_what_one_would(tmp_path) -> None:
    torch.multiprocessing.spawn(worker, args=(str(tmp_path),), nprocs=2)
    single = share(0, SAMPLES)
    merged = share(0, 30) + share(30, SAMPLES)
    for name in CASES:
        first, second = (CrossMoments.load(tmp_path / f"{name} {rank}") for rank in range(2))
        for field, tensor in single.tensors().items():
            reduced = first.tensors()[field]
            assert torch.equal(reduced, second.tensors()[field]), f"{name}: {field} differs between ranks"
            torch.testing.assert_close(reduced, tensor, rtol=1e-11, atol=1e-11 * float(tensor.abs().max()))
            torch.testing.assert_close(
                merged.tensors()[field], tensor, rtol=1e-11, atol=1e-11 * float(tensor.abs().max())
            )
        # a node that is constant everywhere stays exactly so
        assert float(first.teacher_mean[-1]) == CONSTANT and float(first.teacher_scatter[-1]) == 0
        assert (first.student_scatter[:, -1] == 0).all()
    refused = {"nodes": ([3, 5, -1, 0, 0], [3, 6, -1, 0, 0]), "coactivation": ([3, 5, -1, 1, 0], [3, 5, -1, 0, 0])}
    for what, (first, second) in {**refused, "grams": ([3, 5, -1, 0, 1], [3, 5, -1, 0, 0])}.items():
        for rank in range(2):
            assert f"{second} on rank 1, {first} on rank 0" in (tmp_path / f"{what} {rank}").read_text()
