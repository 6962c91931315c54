"""Which implementation runs: by device, or forced."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import fastspec as fs
from fastspec.ops import backends, library
from fastspec.ops.cross_moments import cross_moments
from fastspec.ops.cross_moments import reference as cross_reference

OPS = sorted(p.parent.name for p in Path(backends.__file__).parent.glob("*/reference.py"))


@pytest.fixture(autouse=True)
def restored():
    yield
    fs.backend(None)


def coarse(device="cpu"):
    """Moments in bf16: the reference rounds to it, the CPU kernels do not."""
    x = torch.linspace(-1, 1, 300, device=device).view(100, 3)
    return cross_moments(x, x, precision="bf16").cross_scatter, cross_moments(x, x).cross_scatter


def runs_the_reference():
    rough, fine = coarse()
    return not torch.equal(rough, fine)


def test_every_op_is_known():
    assert sorted(library.ops) == OPS


@pytest.mark.native
def test_a_forced_backend_runs_until_it_is_restored():
    assert not runs_the_reference() and backends.forced() is None
    fs.backend("reference")
    assert runs_the_reference() and backends.forced() == "reference"
    with fs.backend("cpu"):
        assert not runs_the_reference() and backends.forced() == "cpu"
        with fs.backend(None):
            assert not runs_the_reference()
        assert backends.forced() == "cpu"
    assert runs_the_reference()
    fs.backend(None)
    assert not runs_the_reference() and backends.forced() is None


@pytest.mark.native
def test_an_error_restores():
    with pytest.raises(KeyError), fs.backend("reference"):
        raise KeyError
    assert not runs_the_reference()


@pytest.mark.native
def test_compiled_functions_obey():
    compiled = torch.compile(partial(cross_moments, precision="bf16"), fullgraph=True, backend="aot_eager")
    x = torch.randn(50, 3)
    default = compiled(x, x).cross_scatter
    with fs.backend("reference"):
        forced = compiled(x, x).cross_scatter
    assert torch.equal(forced, cross_reference.cross_moments(x, x, "bf16", False)[4])
    assert not torch.equal(forced, default) and torch.equal(compiled(x, x).cross_scatter, default)


def test_every_op_obeys(monkeypatch):
    for name, op in library.ops.items():
        assert backends.override("reference", op, "CPU") is backends.override("reference", op, "CUDA") is op.reference
        assert backends.override("cpu", op, "CPU") is None
        assert backends.override("triton", op, "CUDA") is op.triton
        assert (op.triton is None) == (name in ("two_layer_sgd", "chain_gram", "moments_and_loss"))
    op = library.ops["layer_moments"]
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert backends.override("triton", op, "CPU") is not op.triton
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backends.override("triton", op, "CPU") is op.triton


def test_a_backend_refuses_tensors_that_it_does_not_take(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if library.has_triton():
        with fs.backend("triton"), pytest.raises(ValueError, match=r"device cpu with .* 'triton'; takes CUDA tensors"):
            coarse()
    refusal = backends.override("cpu", library.ops["cross_moments"], "CUDA")
    with pytest.raises(ValueError, match="device meta with the forced backend 'cpu'; takes tensors of the CPU"):
        refusal(torch.empty(2, 2, device="meta"), None, "fp32", False)


def test_a_backend_that_is_not_there_is_named(monkeypatch):
    with pytest.raises(ValueError, match="backend: got 'gpu'; takes 'reference', 'cpu', 'triton' or None"):
        fs.backend("gpu")
    monkeypatch.setattr(library, "has_triton", lambda: False)
    with pytest.raises(ValueError, match="Triton is not installed"):
        fs.backend("triton")
    monkeypatch.setattr(library, "native_error", lambda: "no compiler")
    with pytest.raises(ValueError, match="'cpu', but no compiler"):
        fs.backend("cpu")
    assert backends.forced() is None


def test_triton_is_not_imported_before_it_is_used():
    code = "import sys, fastspec; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_default_device(monkeypatch):
    monkeypatch.delenv("FASTSPEC_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert fs.default_device() == "cpu"
    monkeypatch.setenv("FASTSPEC_DEVICE", "cuda")
    with pytest.raises(ValueError, match="FASTSPEC_DEVICE: got 'cuda'; takes cpu"):
        fs.default_device()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("FASTSPEC_DEVICE", "cuda:1")
    assert fs.default_device() == "cuda:1"
    monkeypatch.delenv("FASTSPEC_DEVICE")
    assert fs.default_device() == "cuda"
    with fs.backend("reference"):
        assert fs.default_device() == "cuda"
    monkeypatch.setattr(backends, "_forced", "cpu")
    assert fs.default_device() == "cpu"
