"""The page of the study, as blocks of a report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import xarray as xr

import fastspec as fs
from fastspec import initialization_plots
from fastspec.experiments.results import RunFolder
from fastspec.initialization_report import ends_table, schemes_table
from fastspec.report import Block, Heading, Picture, Table, Text, provenance_table
from fastspec.theory import gaussian, norms
from fastspec.theory_plots import predicted_beside_measured
from studies.arpit2019.published import READINGS

ABOUT = """Random ReLU networks of {depth} layers, weights N(0, 2 / fan-out), {samples:,} samples of {inputs} Gaussian \
inputs, {seeds} draws of every network, in {dtype}. The forward ratio of a layer is ‖hₗ‖ / ‖x‖, the backward ratio \
‖∂ℓ/∂Wₗ‖ / (‖x‖ ‖δ‖), δ the gradient at the uppermost hidden layer; both tend to 1 with the width. Source: Arpit & \
Bengio, *The Benefits of Over-parameterization at Initialization in Deep ReLU Networks*, arXiv 1901.03611."""
COMPARED = """A reading is of one network that the published code drew: the mean of |1 − ratio| over its layers and \
samples. Ours are means of {seeds} draws, ± their standard error. One draw deviates from the mean of all by about the \
standard deviation over draws, sd; `deviation` is the difference in standard errors of the difference of one draw \
and such a mean, sd √(1 + 1/{seeds})."""
EXACT = """‖h_L‖² / ‖x‖² has mean 1 and variance (1 + 5/m)^L − 1, over draws of the weights. The samples of one \
draw share its weights, so that standard errors are over the {seeds} draws."""
CLOSED = """For Gaussian inputs the moments of two layers have closed forms (`fastspec.theory.gaussian`). A layer of \
20 nodes against one of 50 on 10 inputs, with biases: predicted, and measured by `layer_moments`."""


def deviations(results: xr.Dataset) -> list[dict[str, Any]]:
    """Every reading with what the draws found: mean, standard deviation over draws, deviation in standard errors."""
    rows = []
    for reading in READINGS:
        if reading.width not in results.width.values:
            continue
        one = results.sel(width=reading.width)
        for way, published in (("forward", reading.forward), ("backward", reading.backward)):
            draws = one[f"{way}_error"].mean("layer").values.ravel()
            mean, sd, n = float(draws.mean()), float(draws.std(ddof=1)), len(draws)
            error = sd * math.sqrt(1 + 1 / n)
            rows.append({
                "width": reading.width, "way": way, "published": published, "mean": mean, "sd": sd, "draws": n,
                "deviation": (published - mean) / error,
            })  # fmt: skip
    return rows


def page(folders: Mapping[str, RunFolder], results: Mapping[str, xr.Dataset], *, pictures: bool = True) -> list[Block]:
    """All of it; the first run is that of the readings, the second, if there is one, of all schemes."""
    config, found = folders["readings"].config, _one(results["readings"])
    seeds = config["seeds"]
    fields = {name: config[name] for name in ("samples", "inputs", "seeds", "dtype")}
    rows = deviations(found)
    worst = max((abs(row["deviation"]) for row in rows), default=0.0)
    blocks: list[Block] = [
        Text(ABOUT.format(depth=config["depth"][0], **fields)),
        Heading("Beside the published readings"),
        Text(COMPARED.format(seeds=seeds)),
        _readings_table(rows),
        Text(f"All {len(rows)} readings are within {worst:.1f} standard errors."),
        Heading("Exact moments"),
        Text(EXACT.format(seeds=seeds)),
        _moments_table(found),
        Heading("Bounds"),
        _bounds_table(found, config),
    ]
    if pictures:
        errors = initialization_plots.errors(found, config["samples"], config["confidence"])
        blocks.append(Picture("errors", "Mean |1 − ratio| against the width, and bounds.", errors))
        variance = initialization_plots.energy_variance(found, "he_fan_out")
        blocks.append(Picture("variance", "Variance of the squared norm, layer by layer.", variance))
    if "schemes" in results:
        one = _one(results["schemes"])
        blocks += [Heading("Other schemes"), ends_table(one), schemes_table(one)]
        if pictures:
            blocks.append(Picture("schemes", "Ratios in every layer.", initialization_plots.ratios(one)))
            check = initialization_plots.coordinate_check(one)
            blocks.append(Picture("coordinates", "Coordinate check: activations before and after steps.", check))
    if pictures:
        blocks += [Heading("Closed forms beside measurement"), Text(CLOSED), _closed_forms()]
    return blocks + _origin(folders)


def _one(results: xr.Dataset) -> xr.Dataset:
    return results.isel(data=0)


def _readings_table(rows: list[dict[str, Any]]) -> Table:
    cells = [
        [
            str(row["width"]), row["way"], f"{row['published']:.3f}",
            f"{row['mean']:.4f} ± {row['sd'] / math.sqrt(row['draws']):.4f}", f"{row['sd']:.4f}",
            f"{row['deviation']:+.1f}",
        ]
        for row in rows
    ]  # fmt: skip
    return Table("Mean |1 − ratio|", ("width", "ratio", "published", "found", "sd over draws", "deviation"), cells)


def _moments_table(results: xr.Dataset) -> Table:
    depth = int(results.depth[-1])
    last = results.isel(depth=-1).sel(scheme="he_fan_out", layer=depth)
    rows = []
    for width in map(int, results.width.values):
        square, std = (last[name].sel(width=width).values for name in ("forward_square", "forward_square_std"))
        variance = std**2 + (square - 1) ** 2  # [seed], about the mean 1
        root = math.sqrt(len(square))
        exact = norms.energy_variance(width, depth)
        error = variance.std(ddof=1) / root
        rows.append([
            str(width), f"{square.mean():.4f} ± {square.std(ddof=1) / root:.4f}", f"{exact:.5f}",
            f"{variance.mean():.5f} ± {error:.5f}", f"{(variance.mean() - exact) / error:+.1f}",
        ])  # fmt: skip
    columns = ("width", "mean", "exact variance", "found", "deviation")
    return Table(f"‖h‖² / ‖x‖² after {depth} layers", columns, rows)


def _bounds_table(results: xr.Dataset, config: Mapping[str, Any]) -> Table:
    samples, confidence, depth = config["samples"], config["confidence"], int(results.depth[-1])
    rows = []
    for width in map(int, results.width.values):
        one = results.sel(width=width)
        first = math.sqrt(1 + norms.error_for(width, confidence, samples=samples)) - 1
        published = norms.published_bound(width, confidence, samples=samples, layers=depth)
        found = [
            float(one.forward_worst.sel(layer=1).max()),
            *(float(one[f"{way}_worst"].max()) for way in ("forward", "backward")),
        ]
        rows.append(
            [str(width), f"{found[0]:.3f}", f"{first:.3f}", f"{found[1]:.3f}", f"{found[2]:.3f}", f"{published:.3f}"]
        )
    columns = ("width", "first layer, worst", "tail bound", "forward, worst", "backward, worst", "published code")
    title = (
        "Worst |1 − ratio| of any sample, layer and draw; the tail bound of the first layer holds for all samples of a "
        f"draw with probability {confidence:g}, the last column is what the published code plots for all layers"
    )
    return Table(title, columns, rows)


def _closed_forms() -> Picture:
    draw = torch.Generator().manual_seed(0)
    sizes = ((20, 10), (20,), (50, 10), (50,))
    w_t, b_t, w_s, b_s = (torch.randn(size, generator=draw, dtype=torch.float64) for size in sizes)
    x = fs.data.gaussian(200_000, 10, dtype=torch.float64)
    predicted = gaussian.layer_moments((w_t, b_t), (w_s, b_s))
    measured = fs.layer_moments(x, (w_t, b_t), (w_s, b_s), coactivation=True)
    return Picture("closed-forms", "Every pair of nodes.", predicted_beside_measured(predicted, measured))


def _origin(folders: Mapping[str, RunFolder]) -> list[Block]:
    blocks: list[Block] = [Heading("How it was made")]
    for name, folder in folders.items():
        preset = "fastspec init --preset arpit2019" if name == "readings" else "fastspec init"
        blocks += [Text(f"`{preset}` ({name})."), provenance_table(folder.provenance)]
    blocks.append(Text("`python -m studies.arpit2019 RUN SCHEMES_RUN` wrote this page from the folders of both runs."))
    return blocks
