"""`train` over two processes of gloo: what one process would do, and what it would resume."""

from __future__ import annotations

import datetime

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from fastspec import data
from fastspec.networks import MLP
from fastspec.tensor_files import load_tensors, save_tensors
from fastspec.training import train

KIND = "test of parallel training"


def run(group, *, steps=20, batch_norm=None, **options):
    """A student after `steps` steps, its losses, and the loss on held-out inputs, as tensors."""
    teacher = MLP([4, 3, 3, 2], seed=0, dtype=torch.float64)
    student = MLP([4, 6, 6, 2], seed=1, dtype=torch.float64, batch_norm=batch_norm)
    x, held_out = data.gaussian(70, 4, dtype=torch.float64), data.gaussian(31, 4, seed=5, dtype=torch.float64)
    history = train(
        teacher, student, x, steps=steps, batch_size=7, lr=0.02, momentum=0.5, evaluation=held_out, group=group,
        snapshots=(steps,), **options,
    )  # fmt: skip
    measured = history.measurements[steps]
    scores = torch.stack(list(measured.layer_scores().values()))
    return {**student.state_dict(), "loss": history.loss, "evaluated": measured.loss, "scores": scores}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60))
    try:
        group = dist.group.WORLD
        save_tensors(f"{folder}/whole {rank}", KIND, run(group))
        save_tensors(f"{folder}/normed {rank}", KIND, run(group, batch_norm="before"))
        run(group, steps=12, checkpoint=f"{folder}/checkpoint")
        save_tensors(f"{folder}/resumed {rank}", KIND, run(group, checkpoint=f"{folder}/checkpoint"))
        with pytest.raises(ValueError, match="batch_size: got 1; takes at least 2 with 2 processes"):
            train(MLP([4, 3, 2]), MLP([4, 3, 2]), data.gaussian(9, 4), steps=1, batch_size=1, group=group)
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("parallel")
    torch.multiprocessing.spawn(worker, args=(str(path),), nprocs=2)
    return path


def found(folder, name, rank):
    return load_tensors(folder / f"{name} {rank}", KIND)[0]


@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_do_what_one_would(folder, rank):
    mine, alone = found(folder, "whole", rank), run(None)
    for name, tensor in alone.items():
        torch.testing.assert_close(mine[name], tensor, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["whole", "normed", "resumed"])
def test_processes_agree_to_the_bit(folder, name):
    one, two = (found(folder, name, rank) for rank in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_resumed_run_is_the_whole_one(folder):
    whole, resumed = found(folder, "whole", 0), found(folder, "resumed", 0)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_batch_norm_sees_a_share_of_each_batch(folder):
    mine, alone = found(folder, "normed", 0), run(None, batch_norm="before")
    assert not torch.allclose(mine["linears.0.weight"], alone["linears.0.weight"])
    torch.testing.assert_close(mine["evaluated"], alone["evaluated"], rtol=0.5, atol=0)
