"""Figures of networks at initialisation; every function returns a matplotlib figure and writes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastspec.figures import MARKERS, PALETTE, amounts_axis, legend, panels, threshold_line
from fastspec.theory import norms

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

WAYS = {"forward": "‖hₗ‖ / ‖x‖", "backward": "‖∂ℓ/∂Wₗ‖ / (‖x‖ ‖δ‖)"}
BOUND = {"color": "#404040", "linewidth": 1.0}


def ratios(results: xr.Dataset) -> Figure:
    """Forward and backward ratio in every layer, mean over seeds and samples and the spread of samples.

    results: of an init run, one value of data; of its widest and deepest networks.
    """
    picked = results.isel(width=-1, depth=-1)
    with panels(1, 2, width=3.6, height=3.0, sharex=True) as (figure, axes):
        for ax, (way, label) in zip(axes[0], WAYS.items(), strict=True):
            for i, scheme in enumerate(results.scheme.values):
                one = picked.sel(scheme=scheme)
                mean, std = one[f"{way}_mean"].mean("seed"), one[f"{way}_std"].mean("seed")
                ax.plot(one.layer, mean, label=scheme, color=PALETTE[i % 7], marker=MARKERS[i % 7])
                ax.fill_between(one.layer, mean - std, mean + std, color=PALETTE[i % 7], alpha=0.15, linewidth=0)
            ax.set_yscale("log")
            threshold_line(ax, 1.0)
            ax.set(title=f"{way} ratio", xlabel="hidden layer", ylabel=label)
        legend(figure, axes[0, 0], "scheme")
    return figure


def errors(results: xr.Dataset, samples: int, confidence: float) -> Figure:
    """Mean |1 - ratio| over layers, samples and seeds against the width, with the bounds for He's scheme by fan-out.

    results: as in `ratios`; of the deepest networks.
    """
    picked, depth = results.isel(depth=-1), int(results.depth[-1])
    widths = picked.width.values
    fine = np.unique(np.geomspace(widths[0], widths[-1], 60).round().astype(int)).tolist()
    with panels(1, 2, width=3.6, height=3.0, sharex=True, sharey=True) as (figure, axes):
        for ax, way in zip(axes[0], WAYS, strict=True):
            for i, scheme in enumerate(results.scheme.values):
                error = picked[f"{way}_error"].sel(scheme=scheme).mean(("layer", "seed"))
                ax.plot(widths, error, label=scheme, color=PALETTE[i % 7], marker=MARKERS[i % 7])
            published = [norms.published_bound(m, confidence, samples=samples, layers=depth) for m in fine]
            rule = [norms.error_for(m, confidence, samples=samples, layers=depth) for m in fine]
            ax.plot(fine, published, label="published code", linestyle="--", **BOUND)
            ax.plot(fine, rule, label="width rule, ‖h‖² of a layer", linestyle=":", **BOUND)
            ax.set(yscale="log", title=f"{way} ratio", xlabel="width")
            amounts_axis(ax, widths)
        axes[0, 0].set_ylabel("mean |1 − ratio|")
        legend(figure, axes[0, 0], "scheme")
    return figure


def energy_variance(results: xr.Dataset, scheme: str) -> Figure:
    """The mean over samples and seeds of (‖hₗ‖²/‖x‖² − 1)², beside its exact expectation (1 + 5/m)^l − 1.

    results: as in `ratios`; scheme: one that draws normal weights by fan-out.
    """
    picked = results.isel(depth=-1).sel(scheme=scheme)
    square, std = picked.forward_square, picked.forward_square_std
    found = (std**2 + (square - 1) ** 2).mean("seed")  # [width, layer]
    with panels(1, 1, width=4.2, height=3.2) as (figure, axes):
        ax = axes[0, 0]
        for i, width in enumerate(picked.width.values):
            exact = [norms.energy_variance(int(width), int(layer)) for layer in picked.layer]
            ax.plot(picked.layer, exact, color=PALETTE[i % 7])
            ax.plot(
                picked.layer,
                found.sel(width=width),
                label=str(width),
                color=PALETTE[i % 7],
                marker=MARKERS[i % 7],
                linestyle="",
            )
        ax.set(yscale="log", xlabel="hidden layer", ylabel="variance of ‖hₗ‖² / ‖x‖²", title=f"{scheme}: exact (lines)")
        legend(figure, ax, "width")
    return figure


def coordinate_check(results: xr.Dataset) -> Figure:
    """Root mean square activations against the width, before every step and after the last, mean over seeds.

    results: as in `ratios`; of the deepest networks: their uppermost hidden layer, and the logits below.
    """
    depth = int(results.depth[-1])
    schemes = results.scheme.values
    with panels(2, len(schemes), width=1.9, height=2.0, sharex=True, sharey="row") as (figure, axes):
        for column, scheme in enumerate(schemes):
            one = results.isel(depth=-1).sel(scheme=scheme).coordinate.mean("seed")
            for row, (layer, label) in enumerate(((depth, f"hidden layer {depth}"), (depth + 1, "logits"))):
                ax = axes[row, column]
                for i, step in enumerate(one.step.values):
                    size = one.sel(row=layer, step=step)
                    size = size.where(np.isfinite(size))
                    ax.plot(one.width, size, label=str(step), color=PALETTE[i % 7], marker=MARKERS[i % 7])
                ax.set_yscale("log")
                amounts_axis(ax, one.width.values)
                if row == 0:
                    ax.set_title(scheme)
                if column == 0:
                    ax.set_ylabel(f"{label}\nroot mean square")
        figure.supxlabel("width", fontsize=9)
        legend(figure, axes[0, 0], "steps")
    return figure


def batchnorm_biases(results: xr.Dataset) -> Figure:
    """The percentage of batch-norm biases that are not above 0, a bar for every layer. results: of a bn-bias run."""
    layers = [str(name) for name in results.layer.values]
    with panels(1, 1, width=max(3.0, 0.32 * len(layers)), height=2.8) as (figure, axes):
        ax, places = axes[0, 0], np.arange(len(layers))
        bars = ax.bar(places, results.percent.values, color=PALETTE[1])
        ax.bar_label(bars, fmt="%.0f", fontsize=7, color="#404040")
        ax.set_xticks(places, layers, rotation=90)
        ax.grid(axis="x", visible=False)
        ax.set(ylim=(0, 108), ylabel="biases that are not positive, %")
    return figure
