"""The command line: help, exit codes, one line for an expected error, reports, and measuring files."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fastspec.experiments import cli
from fastspec.experiments.ablation import Ablation
from fastspec.experiments.cli import COMMANDS, main
from fastspec.experiments.deep import Deep
from fastspec.experiments.digits import Digits
from fastspec.experiments.files import load_data
from fastspec.experiments.images import Images
from fastspec.experiments.init import ARPIT2019, Init
from fastspec.experiments.ode import Ode
from fastspec.experiments.sample_complexity import SampleComplexity
from fastspec.experiments.two_layer import ICML2020, TwoLayer
from fastspec.networks import MLP, student_like
from fastspec.populations import Population

ROOT = Path(__file__).parents[2]
TINY = ["--inputs", "6", "--outputs", "4", "--teacher-nodes", "2", "--seeds", "2", "--steps", "40", "--samples", "100"]
TINY += ["--evaluation-samples", "50", "--measurements", "3", "--multi", "1", "2", "--teacher-strength-decay", "0", "1"]


@pytest.fixture
def saved(tmp_path):
    """A teacher, a student, and their inputs in every format."""
    teacher = MLP([5, 4, 3, 2], seed=0, dtype=torch.float32)
    student = student_like(teacher, multi=2, seed=1)
    teacher.save(tmp_path / "teacher.safetensors")
    student.save(tmp_path / "student.safetensors")
    x = torch.randn(40, 5)
    np.save(tmp_path / "x.npy", x.numpy())
    np.savez(tmp_path / "x.npz", x=x.numpy(), y=np.zeros(40))
    save_file({"inputs": x}, tmp_path / "x.safetensors")
    torch.save({"x": x, "y": torch.zeros(40)}, tmp_path / "x.pt")
    return tmp_path


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name in COMMANDS:
        assert re.search(rf"• {name}\s+\w", out), name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    assert main([name, "--help"]) == 0
    assert f"fastspec {name}" in capsys.readouterr().out


@pytest.mark.parametrize("kind", [TwoLayer, Deep, Ablation, SampleComplexity, Digits, Images, Init, Ode])
def test_help_explains_every_option(kind, capsys):
    assert main([kind.name, "--help"]) == 0
    out = capsys.readouterr().out
    for field in fields(kind):
        option = rf"--{field.name.replace('_', '-')}\b"
        assert re.search(rf"{option}((?!--).)*?[\w)]\.[\s│]*\(default:", out, re.DOTALL), field.name


@pytest.mark.parametrize("preset", [["--preset", "icml2020"], ["--preset=icml2020"]])
def test_options_beside_a_preset_replace_its_own(preset, monkeypatch):
    asked = []
    monkeypatch.setattr(cli, "_run", lambda *call: asked.append(call))
    assert main(["two-layer", "--seeds", "3", *preset, "--dtype", "float64"]) == 0
    assert main(["two-layer"]) == 0
    (experiment, out, _), (plain, elsewhere, _) = asked
    assert experiment == replace(ICML2020, seeds=3, dtype="float64") and plain == TwoLayer()
    assert (out, elsewhere) == (cli.RUNS / "two-layer-icml2020", cli.RUNS / "two-layer")


def test_presets_belong_to_their_commands(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(cli, "_run", lambda *call: asked.append(call))
    assert main(["init", "--preset", "arpit2019", "--width", "100"]) == 0
    assert asked == [(replace(ARPIT2019, width=(100,)), cli.RUNS / "init-arpit2019", False)]
    assert main(["init", "--preset", "icml2020"]) == main(["two-layer", "--preset", "arpit2019"]) == 2
    assert capsys.readouterr().err.count("preset") >= 2


def test_the_preset_is_the_published_grid():
    assert len(ICML2020.jobs()) * len(ICML2020.multi) == 72
    assert ICML2020.snapshots[6:] == list(range(1000, 100_001, 1000))


def test_no_command_is_a_request_for_help(capsys):
    assert main([]) == 0
    assert "two-layer" in capsys.readouterr().out


def test_two_layer_and_report(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["two-layer", *TINY, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "Teacher nodes covered" in shown and str(out) in shown
    drawn = [*sorted((out / "figures").glob("*.png")), out / "report.md", out / "report.html"]
    assert len(drawn) == 10
    markdown = (out / "report.md").read_text()
    for path in drawn:
        path.unlink()
    (out / "weights.safetensors").unlink()  # a report needs the results alone
    assert main(["report", str(out)]) == 0
    assert (out / "report.md").read_text() == markdown
    assert all(path.stat().st_size > 500 for path in drawn)
    assert capsys.readouterr().out == shown
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 8 and 'src="figures' not in page
    assert set(re.findall(r"\(figures/(.*?)\)", markdown)) == {path.name for path in drawn[:8]}


MISTAKES = [
    (["two-layer", "--foo", "3"], "--foo"),
    (["two-layer", "--steps", "many"], "many"),
    (["two-layer", "--preset", "icml1905"], "icml1905"),
    (["nonsense"], "nonsense"),
    (["report"], "folder"),
    (["measure", "one.safetensors"], "student"),
]


@pytest.mark.parametrize(("arguments", "named"), MISTAKES, ids=[" ".join(arguments) for arguments, _ in MISTAKES])
def test_mistakes_in_the_call(arguments, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert named in error.lower() and "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


MEASURE = ["measure", "teacher.safetensors", "student.safetensors"]
ERRORS = [
    (["two-layer", "--multi", "1", "1"], "multi: got"),
    (["two-layer", "--lr", "-1"], "lr: got"),
    (["digits", "--held-out", "2"], "held_out: got"),
    (["report", "nowhere"], "folder: got 'nowhere'"),
    (["measure", "nowhere.safetensors", "student.safetensors", "x.npy"], "nowhere.safetensors"),
    (["measure", "teacher.safetensors", "x.safetensors", "x.npy"], "student: .*x.safetensors.*fastspec did not write"),
    (["measure", "teacher.safetensors", "x.npy", "x.npy"], "student: .*x.npy.*truncated"),
    ([*MEASURE, "nowhere.npy"], "nowhere.npy.*no such file"),
    ([*MEASURE, "x.csv"], "x.csv.*suffix"),
    ([*MEASURE, "damaged.npy"], "damaged.npy.*truncated"),
    ([*MEASURE, "damaged.npz"], "damaged.npz.*truncated"),
    ([*MEASURE, "damaged.pt"], "damaged.pt.*truncated"),
    (
        ["measure", "teacher.safetensors", "student.safetensors", "damaged.safetensors"],
        "damaged.safetensors.*truncated",
    ),
    ([*MEASURE, "objects.npy"], "objects.npy.*foreign"),
    ([*MEASURE, "words.npy"], "data file 'words.npy'.*got .*an array of <U1"),
    ([*MEASURE, "module.pt"], r"data file 'module.pt'.*got a truncated or foreign file, or one of more than tensors;"),
    ([*MEASURE, "two.npz"], "two.npz.*a.*b"),
    ([*MEASURE, "wide.npy"], "data.*got shape"),
    ([*MEASURE, "x.npy", "--batch-size", "0"], "batch_size: got 0"),
    ([*MEASURE, "x.npy", "--save", "nowhere/found.safetensors"], "save: got 'nowhere/found.safetensors'"),
    ([*MEASURE, "x.npy", "--save", "."], "save: got '.'"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS, ids=[" ".join(arguments) for arguments, _ in ERRORS])
def test_expected_errors_are_one_line(arguments, message, saved, capsys, monkeypatch):
    monkeypatch.chdir(saved)
    monkeypatch.delenv("FASTSPEC_DEBUG", raising=False)
    (saved / "x.csv").write_text("1,2,3")
    for suffix in ("npy", "npz", "pt", "safetensors"):
        data = (saved / f"x.{suffix}").read_bytes()
        (saved / f"damaged.{suffix}").write_bytes(data[: len(data) // 2])
    np.save(saved / "objects.npy", np.array([{"a": 1}], dtype=object))
    np.save(saved / "words.npy", np.array(["a", "b"]))
    torch.save(torch.nn.Linear(2, 2), saved / "module.pt")
    np.savez(saved / "two.npz", a=np.zeros(3), b=np.zeros(3))
    np.save(saved / "wide.npy", np.zeros((4, 9), dtype=np.float32))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert re.match(rf"fastspec: error: .*{message}", error), error
    assert error.count("\n") == 1


@pytest.mark.parametrize("environment", [False, True])
def test_debug_shows_the_traceback(environment, tmp_path, capsys, monkeypatch):
    if environment:
        monkeypatch.setenv("FASTSPEC_DEBUG", "1")
    assert main(["report", str(tmp_path)] + ([] if environment else ["--debug"])) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error and "fastspec: error: folder" in error


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.safetensors", "x.pt"])
def test_measure_takes_every_format(name, saved, capsys):
    files = [str(saved / file) for file in ("teacher.safetensors", "student.safetensors", name)]
    assert main(["measure", *files, "--save", str(saved / "found.safetensors")]) == 0
    out = capsys.readouterr().out
    assert "40 samples" in out and "hidden2" in out
    assert (saved / "found.safetensors").is_file()


def test_measure_takes_either_byte_order(saved, capsys):
    x = np.load(saved / "x.npy")
    np.save(saved / "swapped.npy", x.astype(x.dtype.newbyteorder()))
    networks = [str(saved / f"{name}.safetensors") for name in ("teacher", "student")]
    assert main(["measure", *networks, str(saved / "x.npy")]) == 0
    expected = capsys.readouterr().out
    assert main(["measure", *networks, str(saved / "swapped.npy")]) == 0
    assert capsys.readouterr().out == expected


def test_measure_takes_a_population(saved, tmp_path, capsys):
    teacher = MLP([5, 3, 2], seed=0, dtype=torch.float32)
    teacher.save(tmp_path / "shallow.safetensors")
    Population.two_layer(teacher, multi=[1, 2], seeds=[0, 1]).save(tmp_path / "students.safetensors")
    assert (
        main(["measure", *(str(tmp_path / name) for name in ("shallow.safetensors", "students.safetensors", "x.npy"))])
        == 0
    )
    assert "4 students" in capsys.readouterr().out


def test_doctor(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for fact in (torch.__version__, "CPU kernels", "torch threads", "CUDA", "Triton", "h5netcdf"):
        assert fact in out


def test_ctrl_c_leaves_a_run_that_goes_on(tmp_path):
    command = [sys.executable, "-m", "fastspec", "two-layer", *TINY, "--out", "run"]
    long = [*command, "--steps", "5000000"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("FASTSPEC_DEBUG", None)
    process = subprocess.Popen(long, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("run/parts/*.step[1-9]*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert error.splitlines()[-1] == "fastspec: interrupted; the same command goes on with the run in run"
    assert "Traceback" not in error
    assert list(tmp_path.glob("run/parts/*.checkpoint"))
    assert subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True).returncode == 2  # other steps


def test_inputs_are_read_in_the_dtype_of_the_network(tmp_path):
    network = MLP([3, 2, 2])
    for dtype, read in ((np.float64, torch.float32), (np.int64, torch.int64)):
        np.save(tmp_path / "x.npy", np.arange(6, dtype=dtype).reshape(2, 3))
        assert load_data(tmp_path / "x.npy", network).dtype == read


def test_inputs_among_other_arrays_are_found_by_name(tmp_path):
    np.savez(tmp_path / "data.npz", labels=np.zeros(2), x=np.ones((2, 3)))
    assert load_data(tmp_path / "data.npz", MLP([3, 2, 2])).equal(torch.ones(2, 3))
