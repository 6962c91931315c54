"""Reports of init and bn-bias runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastspec import initialization_plots as plots
from fastspec.batchnorm import VGG19_BN
from fastspec.initialization import SCHEMES
from fastspec.report import Block, Heading, Picture, Table, Text
from fastspec.theory import norms

if TYPE_CHECKING:
    import xarray as xr

TOLERANCE = 0.2  # of a ratio over all layers, within which norms count as preserved


def init_blocks(results: xr.Dataset, config: Mapping[str, Any], name: str = "") -> list[Block]:
    """The report of an init run; `name` goes before the names of its figures."""
    blocks: list[Block] = [
        Heading("Norms at initialisation"),
        Text(
            "Random bias-free ReLU networks. The forward ratio of a layer is the norm of its activations over that of "
            "the input, the backward ratio the norm of its weights' gradient over those of the input and of the "
            "gradient at the uppermost hidden layer; both are 1 where norms are preserved (Arpit & Bengio, arXiv "
            "1901.03611)."
        ),
    ]
    depth = int(results.depth[-1])
    for data in results.data.values:
        one, x = results.sel(data=data), f"{name}{data}-"
        samples = int(one.samples)
        blocks += [
            Heading(f"{data}"),
            _errors_table(one),
            ends_table(one),
            _bounds_table(one, samples, config["confidence"]),
            *([_coordinates_table(one)] if one.sizes["width"] > 1 else []),
            Picture(
                f"{x}ratios", "Ratios in every layer; bands are standard deviations of samples.", plots.ratios(one)
            ),
            Picture(
                f"{x}errors",
                f"Mean |1 − ratio| over the layers of networks of depth {depth}; bounds of the scheme he_fan_out hold "
                f"with probability {config['confidence']:g} for all samples and layers.",
                plots.errors(one, samples, config["confidence"]),
            ),
            Picture(
                f"{x}coordinates",
                f"Coordinate check: activations before and after steps of gradient descent at learning rate "
                f"{config['lr']:g}. Where a line is level, one learning rate suits all widths.",
                plots.coordinate_check(one),
            ),
        ]
        if "he_fan_out" in one.scheme.values:
            caption = "Variance of the squared norm, points over samples and seeds, lines (1 + 5/m)^l − 1."
            blocks.append(Picture(f"{x}variance", caption, plots.energy_variance(one, "he_fan_out")))
    return [*blocks, schemes_table(results)]


def schemes_table(results: xr.Dataset) -> Table:
    """What the schemes of an init run are."""
    rows = [[name, SCHEMES[name].source] for name in results.scheme.values.tolist()]
    return Table("Schemes", ("scheme", "weights"), rows, summary=False)


def _errors_table(results: xr.Dataset) -> Table:
    rows = []
    for scheme in results.scheme.values:
        for depth in results.depth.values:
            for width in results.width.values:
                one = results.sel(scheme=scheme, width=width, depth=depth)
                cells = []
                for way in ("forward", "backward"):
                    error, worst = one[f"{way}_error"].mean("layer"), float(one[f"{way}_worst"].max())
                    cells += [f"{float(error.mean()):.3f}±{float(error.std()):.3f}", f"{worst:.2f}"]
                rows.append([str(scheme), f"{int(width)} × {int(depth)}", *cells])
    columns = ("scheme", "width × depth", "forward", "worst", "backward", "worst")
    title = "Mean |1 − ratio| over layers and samples, mean ± sd over seeds; worst sample of any layer and seed"
    return Table(title, columns, rows)


def ends_table(results: xr.Dataset) -> Table:
    """What becomes of the norm, in the widest and deepest networks of an init run, one value of data."""
    picked = results.isel(width=-1, depth=-1)
    rows = []
    for scheme in results.scheme.values:
        ends = picked.sel(scheme=scheme)
        forward, backward = float(ends.forward_mean[:, -1].mean()), float(ends.backward_mean[:, 0].mean())
        verdicts = [_verdict(forward), _verdict(backward)]
        rows.append([str(scheme), f"{forward:.3g}", verdicts[0], f"{backward:.3g}", verdicts[1]])
    columns = ("scheme", "forward", "", "backward", "")
    title = (
        f"Width {int(picked.width)}, {int(picked.depth)} layers: forward ratio of the last, backward ratio of the first"
    )
    return Table(title, columns, rows)


def _verdict(ratio: float) -> str:
    if not np.isfinite(ratio):
        return "explodes"
    if ratio * (1 + TOLERANCE) < 1:
        return "shrinks"
    return "explodes" if ratio > 1 + TOLERANCE else "preserves"


def _bounds_table(results: xr.Dataset, samples: int, confidence: float) -> Table:
    depth = int(results.depth[-1])
    rows = []
    for width in map(int, results.width.values):
        rows.append([
            str(width), f"{norms.energy_variance(width, depth) ** 0.5:.3g}",
            f"{norms.error_for(width, confidence, samples=samples, layers=depth):.3g}",
            f"{norms.published_bound(width, confidence, samples=samples, layers=depth):.3g}",
        ])  # fmt: skip
    wanted = ", ".join(
        f"{error:g}: {norms.width_for(error, confidence, samples=samples, layers=depth):,}"
        for error in (0.05, 0.1, 0.2, 0.5)
    )
    title = (
        f"Bounds for he_fan_out, {samples:,} samples, depth {depth}, probability {confidence:g}. Widths for {wanted}"
    )
    columns = ("width", "sd of ‖h‖²/‖x‖²", "width rule, a layer", "published code")
    return Table(title, columns, rows)


def _coordinates_table(results: xr.Dataset) -> Table:
    """How activations scale with the width, in the deepest networks."""
    depth, steps = int(results.depth[-1]), sorted({0, int(results.step[-1])})
    logarithm = np.log(results.width.values)
    rows = []
    for scheme in results.scheme.values:
        size = results.isel(depth=-1).sel(scheme=scheme).coordinate.mean("seed")  # [width, row, step]
        cells = []
        for row in (depth, depth + 1):
            for step in steps:
                values = size.sel(row=row, step=step).values
                known = np.isfinite(values).all() and (values > 0).all()
                cells.append(f"{np.polyfit(logarithm, np.log(values), 1)[0]:+.2f}" if known else "–")
        rows.append([str(scheme), *cells])
    columns = ("scheme", *(f"{what}, {step} steps" for what in ("hidden", "logits") for step in steps))
    title = f"Coordinate check: exponents of the width, of activations in hidden layer {depth} and of logits"
    return Table(title, columns, rows)


def bn_bias_blocks(results: xr.Dataset, config: Mapping[str, Any], name: str = "") -> list[Block]:
    """The report of a bn-bias run; `name` goes before the names of its figures."""
    percent, channels = results.percent.values, results.channels.values
    published = VGG19_BN if list(channels) == VGG19_CHANNELS else None
    rows = []
    for i, layer in enumerate(results.layer.values):
        row = [str(layer), str(int(channels[i])), f"{percent[i]:.2f}"]
        rows.append([*row, f"{published[i]:.2f}"] if published else row)
    columns = ("layer", "channels", "percent", *(["published, pretrained VGG19-BN"] if published else []))
    return [
        Heading("Batch-norm biases"),
        Text(
            f"`{config['file']}`: how many biases of each BatchNorm layer are not above 0. Such a node is active on a "
            "minority of the samples (Luck Matters, Tian et al. 2019)."
        ),
        Table("Percentage of biases that are not above 0", columns, rows),
        Picture(f"{name}biases", "Percentage of biases that are not above 0.", plots.batchnorm_biases(results)),
    ]


VGG19_CHANNELS = [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8
