"""`fastspec init`, `ode` and `bn-bias`: what they find, draw and refuse."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from clear_errors import one_line_error
from safetensors.torch import save_file

import fastspec as fs
from fastspec.batchnorm import VGG19_BN
from fastspec.experiments.cli import main
from fastspec.experiments.results import RunFolder
from fastspec.initialization_report import VGG19_CHANNELS
from fastspec.norms import Grid, norm_report
from fastspec.tensor_files import load_tensors
from fastspec.theory.online import OrderParameters


def drawn(folder) -> set[str]:
    assert all(path.stat().st_size > 500 for path in (folder / "figures").iterdir())
    return {path.name for path in (folder / "figures").iterdir()}


def test_init_is_norm_report(tiny_init, tmp_path):
    results = tiny_init.run(tmp_path / "run")
    x = fs.data.gaussian(20, 6)
    report = norm_report(Grid(("he_fan_out", "default"), (5, 9), (1, 3), range(3), 3, 2, 0.01), x).to_xarray()
    for name in report:
        np.testing.assert_array_equal(results[name].sel(data="gaussian").values, report[name].isel(data=0).values)
    assert results.forward_mean.sel(data="digits", depth=3).notnull().all()


def test_init_command(tmp_path, capsys):
    out = tmp_path / "run"
    options = [
        "--width",
        "10",
        "20",
        "--depth",
        "2",
        "--seeds",
        "2",
        "--inputs",
        "8",
        "--samples",
        "30",
        "--steps",
        "1",
    ]
    options += ["--scheme", "he_fan_out", "orthogonal", "default"]
    assert main(["init", *options, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "orthogonal" in shown and "preserves" in shown and "shrinks" in shown
    assert drawn(out) == {f"gaussian-{name}.png" for name in ("ratios", "errors", "coordinates", "variance")}
    text = (out / "report.md").read_text()
    size = RunFolder.load(out).results().coordinate.isel(data=0).sel(depth=2, row=2, scheme="default").mean("seed")
    slope = np.log(size.sel(width=20, step=1) / size.sel(width=10, step=1)) / np.log(2)
    (row,) = re.findall(r"\| default \| (.*) \|", text.split("Coordinate check: exponents")[1].split("\n\n")[1])
    assert float(row.split("|")[1]) == pytest.approx(float(slope), abs=0.006)
    assert main(["report", str(out)]) == 0
    assert (out / "report.md").read_text() == text


@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_ode_command(activation, tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--inputs", "10", "30", "--seeds", "2", "--time", "4", "--measurements", "5", "--lean", "0.3"]
    assert main(["ode", *options, "--activation", activation, "--out", str(out)]) == 0
    assert "Deviation of R from the equation" in capsys.readouterr().out
    assert drawn(out) == {"loss.png", "order-parameters.png", "deviation.png"}
    results = RunFolder.load(out).results()
    np.testing.assert_allclose(
        results.simulated_cross.isel(time=0), np.broadcast_to(results.cross[0], (2, 2, 2, 2)), atol=1e-12
    )
    np.testing.assert_allclose(results.simulated_loss.isel(time=0), float(results.loss[0]), rtol=1e-9)
    weights = load_tensors(out / "weights.safetensors", "weights of a run")[0]
    last = OrderParameters.of(weights["30 inputs.teacher.w1"], weights["30 inputs.students.w1"][1])
    end = results.sel(inputs=30, seed=1).isel(time=-1)
    np.testing.assert_allclose(end.simulated_cross, last.cross, atol=1e-6)
    np.testing.assert_allclose(end.simulated_student, last.student, atol=1e-6)


def vgg_like(percent) -> dict[str, torch.Tensor]:
    """The batch norms of a VGG19-BN whose share of biases that are not positive is given."""
    state = {}
    for i, (channels, share) in enumerate(zip(VGG19_CHANNELS, percent, strict=True)):
        bias = torch.ones(channels)
        bias[: round(share * channels / 100)] = -1
        state |= {f"features.{3 * i + 1}.bias": bias, f"features.{3 * i + 1}.running_mean": torch.zeros(channels)}
    return state


def test_bn_bias_command(tmp_path, capsys):
    file, out = tmp_path / "vgg.safetensors", tmp_path / "run"
    save_file(vgg_like(VGG19_BN), file)
    assert main(["bn-bias", str(file), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert all(f"{percent:.2f}" in shown for percent in VGG19_BN) and "published" in shown
    assert drawn(out) == {"biases.png"}
    results = RunFolder.load(out).results()
    np.testing.assert_allclose(results.percent, VGG19_BN, atol=0.005)
    assert results.layer.values[:2].tolist() == ["features.1", "features.4"]
    rows = [line for line in (out / "report.md").read_text().splitlines() if line.startswith("| features")]
    assert all(row.split("|")[3] == row.split("|")[4] for row in rows) and len(rows) == 16
    assert main(["bn-bias", str(file), "--out", str(out)]) == 0  # the same file, the same run
    save_file(vgg_like([50.0] * 16), file)
    assert "sha256" in one_line_error(capsys, "bn-bias", file, "--out", out)
    assert main(["bn-bias", str(file), "--out", str(out), "--overwrite"]) == 0


def test_bn_bias_of_a_network_of_ours(tmp_path, capsys):
    fs.MLP([4, 3, 2], batch_norm="after").save(tmp_path / "network.safetensors")
    assert main(["bn-bias", str(tmp_path / "network.safetensors"), "--out", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "norms.0" in shown and "100.00" in shown and "published" not in shown


def test_bn_bias_refuses(tmp_path, capsys):
    (tmp_path / "x.pt").write_text("x")
    out = tmp_path / "run"
    assert "no such file" in one_line_error(capsys, "bn-bias", tmp_path / "nowhere.pt", "--out", out)
    assert not out.exists()
    assert "truncated or foreign" in one_line_error(capsys, "bn-bias", tmp_path / "x.pt", "--out", out)
    assert not out.exists()  # or the next file would be refused
