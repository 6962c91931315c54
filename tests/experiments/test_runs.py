"""Runs of the experiments: what they save, what they leave when interrupted, and how they go on."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

from fastspec.experiments import digits
from fastspec.experiments import results as results_module
from fastspec.experiments.console import Console
from fastspec.experiments.demo import Demo
from fastspec.experiments.results import RunFolder
from fastspec.networks import student_like
from fastspec.populations import Population
from fastspec.tensor_files import load_tensors

OUTPUT = {
    "two-layer": ["config.json", "results.nc", "timings.json", "weights.safetensors"],
    "deep": ["config.json", "results.nc", "timings.json", "weights.safetensors"],
    "ablation": ["config.json", "results.nc", "timings.json", "weights.safetensors"],
    "sample-complexity": ["config.json", "results.nc", "timings.json", "weights.safetensors"],
    "digits": ["config.json", "results.nc", "timings.json", "weights.safetensors"],
    "images": ["config.json", "results.nc", "timings.json", "weights.safetensors"],
    "matrix-dynamics": ["config.json", "results.nc", "weights.safetensors"],
    "init": ["config.json", "results.nc", "weights.safetensors"],
    "ode": ["config.json", "results.nc", "weights.safetensors"],
}


class Interrupting(Console):
    """A console on which somebody presses Ctrl-C at the n-th report of progress."""

    def __init__(self, reports):
        super().__init__(quiet=True)
        self.reports = reports

    def _safe_point(self):
        self.reports -= 1
        if self.reports == 0:
            raise KeyboardInterrupt


@pytest.fixture(
    scope="module",
    params=[
        "tiny_two_layer",
        "tiny_deep",
        "tiny_ablation",
        "tiny_sample_complexity",
        "tiny_digits",
        "tiny_images",
        "tiny_matrix_dynamics",
        "tiny_init",
        "tiny_ode",
    ],
)
def experiment(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def whole(experiment, tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    experiment.run(folder)
    return folder


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def weights_of(folder):
    return load_tensors(folder / "weights.safetensors", "weights of a run")[0]


def test_saved_results_are_those_returned(experiment, tmp_path):
    results = experiment.run(tmp_path / "run")
    saved = RunFolder.load(tmp_path / "run").results()
    assert files(tmp_path / "run") == OUTPUT[experiment.name]
    assert saved.identical(results)


@pytest.mark.parametrize("reports", [1, 2, 4, 5, 7])
def test_interrupted_run_goes_on_bit_for_bit(experiment, whole, tmp_path, reports):
    with pytest.raises(KeyboardInterrupt):
        experiment.run(tmp_path / "broken", console=Interrupting(reports))
    assert not RunFolder.load(tmp_path / "broken").finished
    resumed = experiment.run(tmp_path / "broken")
    assert resumed.identical(RunFolder.load(whole).results())
    assert files(tmp_path / "broken") == files(whole)
    expected, found = weights_of(whole), weights_of(tmp_path / "broken")
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_finished_jobs_are_not_trained_again(tiny_two_layer, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        tiny_two_layer.run(tmp_path, console=Interrupting(12))
    finished = len(list((tmp_path / "parts").glob("*.students.safetensors")))
    assert 0 < finished < len(tiny_two_layer.jobs())
    starts = []
    start = Population.two_layer
    monkeypatch.setattr(Population, "two_layer", lambda *a, **k: starts.append(a) or start(*a, **k))
    tiny_two_layer.run(tmp_path)
    assert len(starts) == len(tiny_two_layer.jobs()) - finished


def test_half_written_files_of_killed_processes_are_removed(tiny_two_layer, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tiny_two_layer.run(tmp_path, console=Interrupting(4))
    (tmp_path / ".timings.json.123.partial").write_text("{")
    tiny_two_layer.run(tmp_path)
    assert files(tmp_path) == OUTPUT["two-layer"]


def test_a_lost_measurement_is_made_again(tiny_two_layer, tmp_path):
    whole = tiny_two_layer.run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        tiny_two_layer.run(tmp_path / "broken", console=Interrupting(4))
    lost = sorted((tmp_path / "broken" / "parts").glob("m2-decay0.step*"))
    assert lost and (tmp_path / "broken" / "parts" / "m2-decay0.checkpoint").exists()
    lost[0].unlink()
    assert tiny_two_layer.run(tmp_path / "broken").identical(whole)


def test_arrays_are_padded_where_there_is_no_node(tiny_two_layer, tmp_path):
    results = tiny_two_layer.run(tmp_path)
    narrow = results.sel(teacher_nodes=2)
    assert narrow.best_correlation.isel(teacher=2).isnull().all()
    assert narrow.best_correlation.isel(teacher=slice(2)).notnull().all()
    assert (narrow.best_student.isel(teacher=2) == -1).all()
    assert narrow.fan_out.sel(multi=1).isel(student=slice(2, None)).isnull().all()
    assert results.fan_out.sel(teacher_nodes=3, multi=2).notnull().all()
    assert results.loss.notnull().all()


def test_every_seed_with_a_teacher_of_its_own(tiny_two_layer, tmp_path):
    own = replace(tiny_two_layer, own_teachers=True, teacher_nodes=(3,), teacher_strength_decay=(1.0,))
    found = own.run(tmp_path / "own")
    shared = replace(own, own_teachers=False).run(tmp_path / "shared")
    first, second = ({"seed": k} for k in (0, 1))
    xr.testing.assert_identical(found.sel(first), shared.sel(first))
    assert (found.best_correlation.sel(second) != shared.best_correlation.sel(second)).any()
    (x0, held_out), (x1, _) = (job.samples() for job in own.jobs())
    assert not torch.equal(x0, x1) and not torch.equal(x0[: len(held_out)], held_out)
    teachers = [weights_of(tmp_path / "own")[f"m3-decay1-seed{k}.teacher.w1"] for k in (0, 1)]
    assert not torch.equal(*teachers)


def test_a_job_of_one_student(tiny_two_layer, tmp_path):
    alone = replace(tiny_two_layer, own_teachers=True, multi=(2,), seeds=1)
    whole = tiny_two_layer.run(tmp_path / "whole").sel(multi=[2], seed=[0])
    assert alone.run(tmp_path / "alone").loss.equals(whole.loss)


@pytest.mark.parametrize("followed", [0, 2])
def test_followed_nodes_end_where_all_nodes_end(followed, tiny_two_layer, tmp_path):
    results = replace(tiny_two_layer, followed_seeds=followed).run(tmp_path)
    assert results.sizes["followed"] == followed
    last = results.isel(step=-1)
    for of_node, at_the_end in (
        ("correlation", "max_correlation"),
        ("teacher", "best_teacher"),
        ("fan_out", "fan_out"),
    ):
        nodes = last[f"node_{of_node}"].transpose("followed", ...)
        np.testing.assert_array_equal(nodes, last[at_the_end].isel(seed=slice(followed)).transpose("seed", ...))


def test_epochs_and_halves_of_the_first(tiny_two_layer, tmp_path):
    results = replace(tiny_two_layer, measure_every=16, steps=40).run(tmp_path)
    assert results.step.values.tolist() == [0, 1, 2, 4, 8, 16, 32, 40]
    assert results.epoch.values.tolist() == [0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 2.5]


def test_fan_out_belongs_to_the_saved_weights(tiny_two_layer, tmp_path):
    results = tiny_two_layer.run(tmp_path)
    weights = weights_of(tmp_path)
    stem = "m3-decay1.students"
    k = [
        (int(multi), int(seed)) for multi, seed in zip(weights[f"{stem}.multi"], weights[f"{stem}.seed"], strict=True)
    ].index((2, 1))
    rows = slice(*weights[f"{stem}.offsets"][k : k + 2].tolist())
    expected = weights[f"{stem}.w2"][rows].norm(dim=1).numpy()
    found = results.fan_out.sel(teacher_nodes=3, strength_decay=1.0, multi=2, seed=1).values
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_demo_runs_both_parts_and_goes_on(tiny_two_layer, tiny_digits, tmp_path):
    demo = Demo(tiny_two_layer, tiny_digits)
    with pytest.raises(KeyboardInterrupt):
        demo.run(tmp_path, console=Interrupting(30))
    assert RunFolder.load(tmp_path / "gaussian").finished
    before = (tmp_path / "gaussian" / "results.nc").stat().st_mtime_ns
    demo.run(tmp_path)
    assert RunFolder.load(tmp_path / "digits").finished
    assert (tmp_path / "gaussian" / "results.nc").stat().st_mtime_ns == before


def test_overwrite_starts_anew(tiny_digits, tmp_path):
    tiny_digits.run(tmp_path)
    before = (tmp_path / "results.nc").stat().st_mtime_ns
    tiny_digits.run(tmp_path)
    assert (tmp_path / "results.nc").stat().st_mtime_ns == before
    tiny_digits.run(tmp_path, overwrite=True)
    assert (tmp_path / "results.nc").stat().st_mtime_ns > before


def test_digits_students_have_starts_and_batches_of_their_own(tiny_digits, tmp_path, monkeypatch):
    start = tiny_digits.run(tmp_path / "run").loss.isel(step=0)
    assert (start.sel(seed=0) != start.sel(seed=1)).all()
    monkeypatch.setattr(digits, "student_like", lambda teacher, multi, seed: student_like(teacher, multi=multi, seed=0))
    loss = tiny_digits.run(tmp_path / "same starts").loss
    assert (loss.isel(step=0).sel(seed=0) == loss.isel(step=0).sel(seed=1)).all()
    assert (loss.isel(step=-1).sel(seed=0) != loss.isel(step=-1).sel(seed=1)).all()


def test_provenance_knows_threads_and_dtype(experiment, tmp_path):
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(2)
    torch.set_default_dtype(torch.float64)
    try:
        experiment.run(tmp_path)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
    made = RunFolder.load(tmp_path).provenance
    used = {"two-layer": (2, "float32"), "digits": (1, "float64"), "matrix-dynamics": (1, "float32")}
    used |= {"deep": (2, "float32"), "init": (2, "float32"), "ode": (2, "float64")}
    used |= {"ablation": (1, "float32"), "sample-complexity": (1, "float32"), "images": (1, "float64")}
    threads_and_dtype = used[experiment.name]
    assert (made["threads"], made["dtype"]) == threads_and_dtype
    kept = {getattr(torch, threads_and_dtype[1]), torch.int64}
    assert {tensor.dtype for tensor in weights_of(tmp_path).values()} <= kept


def test_files_are_compressed_netcdf4_with_ordinary_permissions(experiment, tmp_path, monkeypatch):
    import h5py

    monkeypatch.setattr(results_module, "SMALL", 10)
    before = os.umask(0o027)
    try:
        experiment.run(tmp_path)
    finally:
        os.umask(before)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {
        name: "0o640" for name in OUTPUT[experiment.name]
    }
    with h5py.File(tmp_path / "results.nc") as file:
        assert {array.compression for array in file.values() if array.size > 10} == {"gzip"}
