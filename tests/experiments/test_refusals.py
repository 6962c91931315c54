"""One clear error for every option, folder and file that cannot be."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest

from fastspec.experiments.ablation import Ablation
from fastspec.experiments.deep import Deep
from fastspec.experiments.digits import Digits
from fastspec.experiments.images import Images
from fastspec.experiments.init import Init
from fastspec.experiments.ode import Ode
from fastspec.experiments.reports import redraw
from fastspec.experiments.results import RunFolder
from fastspec.experiments.sample_complexity import SampleComplexity
from fastspec.experiments.two_layer import TwoLayer

OPTIONS = [
    (TwoLayer, "multi", ()),
    (TwoLayer, "multi", (0,)),
    (TwoLayer, "multi", (2, 2)),
    (TwoLayer, "multi", (1.5,)),
    (TwoLayer, "teacher_nodes", (-1,)),
    (TwoLayer, "teacher_strength_decay", (-1.0,)),
    (TwoLayer, "teacher_strength_decay", (float("nan"),)),
    (TwoLayer, "seeds", 0),
    (TwoLayer, "steps", 0),
    (TwoLayer, "batch_size", 0),
    (TwoLayer, "lr", -0.1),
    (TwoLayer, "lr", float("inf")),
    (TwoLayer, "measurements", 1),
    (TwoLayer, "data_std", 0.0),
    (TwoLayer, "measure_every", -1),
    (TwoLayer, "measure_every", 200_000),
    (TwoLayer, "followed_seeds", 9),
    (TwoLayer, "dtype", "float16"),
    (TwoLayer, "threshold", 1.5),
    (Deep, "hidden", (0,)),
    (Deep, "multi", (2, 2)),
    (Deep, "samples", ()),
    (Deep, "samples", (63,)),
    (Deep, "weight_set", (1.0, 1.0)),
    (Deep, "weight_set", (float("nan"),)),
    (Deep, "batch_size", 0),
    (Deep, "lr", float("nan")),
    (Deep, "lr_drop", -1.0),
    (Deep, "momentum", 1.5),
    (Deep, "measure_every", 10**6),
    (Deep, "data_std", 0.0),
    (Deep, "batch_norm", "between"),
    (Deep, "dtype", "float16"),
    (Deep, "teacher_seed", -1),
    (Ablation, "multi", (1, 1)),
    (Ablation, "multi", (0,)),
    (Ablation, "batch_norm", ("between",)),
    (Ablation, "teacher", ("separated", "trained")),
    (Ablation, "teacher", ()),
    (Ablation, "batch_size", (0,)),
    (Ablation, "lr", (0.1, float("nan"))),
    (Ablation, "outputs", (1.5,)),
    (Ablation, "epochs", 0),
    (Ablation, "samples", 255),
    (Ablation, "seeds", 0),
    (Ablation, "hidden", ()),
    (Ablation, "dtype", "float16"),
    (SampleComplexity, "teacher", "trained"),
    (SampleComplexity, "kind", ("uniform",)),
    (SampleComplexity, "kind", ("gaussian", "gaussian")),
    (SampleComplexity, "samples", (31,)),
    (SampleComplexity, "samples", (64, 64)),
    (SampleComplexity, "boundary_mean", -1.0),
    (SampleComplexity, "boundary_sigma", float("inf")),
    (SampleComplexity, "threshold", 1.5),
    (SampleComplexity, "multi", ()),
    (SampleComplexity, "steps", 0),
    (SampleComplexity, "lr", -1.0),
    (Digits, "hidden", ()),
    (Digits, "hidden", (0,)),
    (Digits, "multi", (1, 1)),
    (Digits, "held_out", 1.0),
    (Digits, "student_noise", -1.0),
    (Digits, "data_seed", -1),
    (Digits, "batch_size", 0),
    (Images, "data", "imagenet"),
    (Images, "network", "transformer"),
    (Images, "prune", 1.0),
    (Images, "prune", -0.1),
    (Images, "samples", -1),
    (Images, "evaluation_samples", -1),
    (Images, "multi", (0,)),
    (Init, "scheme", ("xavier",)),
    (Init, "scheme", ()),
    (Init, "width", (5, 5)),
    (Init, "depth", (0,)),
    (Init, "seeds", 0),
    (Init, "data", ("cifar",)),
    (Init, "outputs", 1),
    (Init, "lr", -1.0),
    (Init, "confidence", 1.0),
    (Init, "dtype", "float16"),
    (Ode, "activation", "tanh"),
    (Ode, "inputs", (3,)),
    (Ode, "inputs", ()),
    (Ode, "rate", 0.0),
    (Ode, "dtype", "float16"),
    (Ode, "time", float("inf")),
    (Ode, "lean", 1.5),
    (Ode, "measurements", 1),
    (Ode, "measurements", 10_000),
]


@pytest.mark.parametrize(("kind", "option", "value"), OPTIONS)
def test_options(kind, option, value, tmp_path):
    with pytest.raises((ValueError, TypeError), match=f"^{option}.*: got .*; takes "):
        kind(**{option: value}).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "mnist"}, "folder: got ''; takes the folder with the files of mnist"),
        ({"folder": "nowhere"}, "folder: got 'nowhere'; takes no folder for digits"),
        ({"data": "cifar10", "folder": "nowhere"}, "folder: got 'nowhere'; takes"),
        ({"network": "convolutional", "hidden": (4, 4, 4, 4)}, "hidden: got 4 convolutions; takes at most 3 on 8 x 8"),
    ],
)
def test_options_that_do_not_fit_each_other(options, message, tmp_path):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        Images(**options).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_folder_of_another_configuration(tiny_digits, digits_run):
    other = dataclasses.replace(tiny_digits, multi=(3,))
    with pytest.raises(ValueError, match=r"^out: got .*multi = \[1, 2\] \(now \[3\]\); takes .*--overwrite"):
        other.run(digits_run)
    assert RunFolder.load(digits_run).config["multi"] == [1, 2]


def test_folder_of_another_experiment(tiny_two_layer, digits_run):
    with pytest.raises(ValueError, match=r"^out: got .*'digits'"):
        tiny_two_layer.run(digits_run)


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_of_something_else_is_left_alone(tiny_digits, tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"^out: got .*other files"):
        tiny_digits.run(tmp_path, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_folder_that_is_a_file(tiny_digits, tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ValueError, match=r"^out: got .*a file"):
        tiny_digits.run(tmp_path / "run")


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_last_byte(path):
    path.write_bytes(path.read_bytes()[:-1])


def text(path):
    path.write_text("not what you think")


def empty(path):
    path.write_bytes(b"")


def foreign_json(path):
    path.write_text('{"name": "package.json"}')


def other_version(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": "99"}))


def unknown_experiment(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"experiment": "mystery"}))


def without_configuration(path):
    path.write_text(json.dumps({"fastspec": "run", "version": "1", "experiment": "digits"}))


def foreign_netcdf(path):
    import xarray

    xarray.Dataset({"temperature": ("x", np.arange(3.0))}).to_netcdf(path, engine="h5netcdf")


def results_of_another_version(path):
    import xarray

    results = xarray.load_dataset(path, engine="h5netcdf")
    results.assign_attrs(version="99").to_netcdf(path, engine="h5netcdf")


def other_netcdf(path):
    import xarray

    marks = {"fastspec": "results", "version": "1", "experiment": "digits"}
    xarray.Dataset({"temperature": ("x", np.arange(3.0))}, attrs=marks).to_netcdf(path, engine="h5netcdf")


DAMAGE = [
    ("config.json", truncate),
    ("config.json", text),
    ("config.json", empty),
    ("config.json", foreign_json),
    ("config.json", other_version),
    ("config.json", unknown_experiment),
    ("config.json", without_configuration),
    ("timings.json", text),
    ("results.nc", truncate),
    ("results.nc", cut_last_byte),
    ("results.nc", text),
    ("results.nc", empty),
    ("results.nc", foreign_netcdf),
    ("results.nc", results_of_another_version),
    ("results.nc", other_netcdf),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGE)
def test_damaged_files(digits_run, name, damage):
    damage(digits_run / name)
    with pytest.raises(ValueError, match=f"^file '.*{name}': got .*; takes "):
        redraw(digits_run)


@pytest.mark.parametrize("name", ["config.json", "results.nc"])
def test_missing_files(digits_run, name):
    (digits_run / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"^folder: got .*without {name}"):
        redraw(digits_run)
