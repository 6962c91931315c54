"""Killed processes and full disks: a run goes on from what is whole, and ends with the same bits."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastspec.experiments.results import RunFolder
from fastspec.experiments.two_layer import TwoLayer
from fastspec.tensor_files import load_tensors

ROOT = Path(__file__).parents[2]
TINY = ["--inputs", "6", "--outputs", "4", "--teacher-nodes", "2", "3", "--multi", "1", "2", "--seeds", "2"]
TINY += ["--steps", "1200", "--measure-every", "100", "--samples", "100", "--evaluation-samples", "50"]

# Forks children that run to the end or are killed at random moments; a checkpoint is saved after every call of the op.
KILLER = """
import os, random, signal, sys, time
from fastspec.experiments.cli import main
from fastspec.training import two_layer

seed, *arguments = sys.argv[1:]
draw = random.Random(int(seed))
two_layer.CHECKPOINT_SECONDS = 0.0
killed, patience = 0, 0.02
while True:
    child = os.fork()
    if not child:
        os._exit(main(arguments))
    time.sleep(draw.uniform(0, patience))
    if killed < 12:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        print(killed)
        sys.exit(os.WEXITSTATUS(status))
    killed, patience = killed + 1, 1.3 * patience
"""


def run(arguments, folder, **options):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("FASTSPEC_DEBUG", None)
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, **options
    )


def assert_equal(folder, whole):
    assert RunFolder.load(folder).results().identical(RunFolder.load(whole).results())
    found, expected = (load_tensors(f / "weights.safetensors", "weights of a run")[0] for f in (folder, whole))
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert not (folder / "parts").exists() and not list(folder.rglob("*.partial"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    done = run(["-m", "fastspec", "two-layer", *TINY, "--out", "run"], folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments(seed, whole, tmp_path):
    done = run(["-c", KILLER, str(seed), "two-layer", *TINY, "--out", "run"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) >= 5
    assert_equal(tmp_path / "run", whole)


@pytest.mark.parametrize("limit", [3_000, 12_000, 60_000])
def test_no_room_for_a_file(limit, whole, tmp_path):
    """Files may not grow beyond `limit` bytes: measurements, checkpoints and results fail in turn."""
    command = ["-m", "fastspec", "two-layer", *TINY, "--out", "run"]
    limits = (limit, limit)
    failed = run(command, tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits))
    assert failed.returncode == 2
    assert failed.stderr.splitlines()[-1].startswith("fastspec: error: file 'run/")
    assert "File too large" in failed.stderr and "Traceback" not in failed.stderr
    assert not list((tmp_path / "run").rglob("*.partial"))
    assert run(command, tmp_path).returncode == 0
    assert_equal(tmp_path / "run", whole)


@pytest.fixture(scope="module")
def tiny(tiny_two_layer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "run"
    tiny_two_layer.run(folder)
    return folder


@pytest.mark.parametrize("write", range(1, 16))  # config.json, and the 12 of a job
def test_full_disk_at_any_write(write, tiny, tiny_two_layer, tmp_path, monkeypatch):
    writes, sync = 0, os.fsync

    def fill(descriptor):
        nonlocal writes
        writes += 1
        if writes == write:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(OSError, match=r"^file '.*': got No space left on device; takes .* room on its disk$"):
        tiny_two_layer.run(tmp_path / "run")
    tiny_two_layer.run(tmp_path / "run")
    assert writes > write
    assert_equal(tmp_path / "run", tiny)


def test_a_run_killed_at_its_first_file_starts_again(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".config.json.123.partial").write_text("{")
    small = {"inputs": 6, "outputs": 4, "teacher_nodes": (2,), "multi": (1,), "teacher_strength_decay": (0.0,)}
    experiment = TwoLayer(**small, seeds=1, steps=10, samples=20, evaluation_samples=10, measurements=2)
    experiment.run(folder)
    assert not [path.name for path in folder.iterdir() if path.name.endswith(".partial")]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.partial").write_text("mine")
    with pytest.raises(ValueError, match="a folder with other files"):
        experiment.run(tmp_path / "other")
