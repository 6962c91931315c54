"""Every file this package writes, damaged in every way: one clear error that names the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from clear_errors import assert_clear, one_line_error
from safetensors.torch import save_file

import fastspec as fs
from fastspec.experiments.digits import Digits

x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
teacher, student = fs.MLP([6, 3, 2]), fs.MLP([6, 5, 2], seed=1)
students = fs.Population.two_layer(teacher, multi=[1, 2], seeds=[0, 1])


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_its_last_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("not what you think")


def foreign(path: Path) -> None:
    """A sound file of the same format that somebody else wrote."""
    if path.suffix == ".json":
        path.write_text(json.dumps({"name": "somebody else's"}))
    elif path.suffix == ".nc":
        import xarray

        xarray.Dataset({"temperature": ("day", [1.0, 2.0])}).to_netcdf(path, engine="scipy")
    else:
        save_file({"w": torch.zeros(2)}, path)


def hollow(path: Path) -> None:
    """A file that says it is the right one, without its content."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = {name: file.metadata()[name] for name in ("fastspec", "version")}
    save_file({"w": torch.zeros(2)}, path, metadata)


def missing(path: Path) -> None:
    path.unlink()


DAMAGE = [truncated, without_its_last_byte, empty, text, foreign, missing]
SAVED: dict[str, Any] = {
    "CrossMoments": fs.cross_moments(x[:, :3], x),
    "MLP": teacher,
    "ConvNet": fs.ConvNet((1, 6, 6), [2], 2),
    "Population": students,
    "Measurement": fs.measure(teacher, student, x),
    "PopulationMeasurement": fs.measure(teacher, students, x),
}


@pytest.mark.parametrize("damage", [*DAMAGE, hollow])
@pytest.mark.parametrize("kind", SAVED)
def test_saved_objects(kind: str, damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "saved.safetensors"
    SAVED[kind].save(path)
    damage(path)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        type(SAVED[kind]).load(path)
    assert_clear(str(caught.value), f"path '{path}'")


@pytest.mark.parametrize("kind", SAVED)
def test_saved_objects_of_another_kind(kind: str, tmp_path: Path) -> None:
    for other, thing in SAVED.items():
        if other != kind:
            thing.save(tmp_path / other)
            with pytest.raises(ValueError) as caught:
                type(SAVED[kind]).load(tmp_path / other)
            assert_clear(str(caught.value), f"path '{tmp_path / other}'")


@pytest.mark.parametrize("damage", [truncated, empty, text, foreign, hollow])
def test_checkpoints(damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    fs.train_two_layer(teacher, students, x, steps=2, checkpoint=path)
    damage(path)
    with pytest.raises(ValueError) as caught:
        fs.train_two_layer(teacher, students, x, steps=2, checkpoint=path)
    assert_clear(str(caught.value), f"path '{path}'")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a tiny run."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    Digits(hidden=(4, 3), multi=(1,), teacher_steps=3, student_steps=3, measurements=2).run(folder)
    return folder


RESULT_FILES = [(name, damage) for name in ("config.json", "results.nc") for damage in DAMAGE]
RESULT_FILES.remove(("config.json", without_its_last_byte))  # an empty line


@pytest.mark.parametrize(("name", "damage"), RESULT_FILES)
def test_result_files(name: str, damage: Callable[[Path], None], finished: Path, tmp_path: Path, capsys) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    damage(folder / name)
    error = one_line_error(capsys, "report", folder).removeprefix("fastspec: error: ")
    assert name in error
    assert_clear(error.rstrip("\n"), "folder" if damage is missing else f"file '{folder / name}'")
