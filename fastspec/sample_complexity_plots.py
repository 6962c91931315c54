"""Figures from the labelled results of a sample-complexity run; every function returns a matplotlib figure and writes
nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastspec.figures import amounts_axis, legend, look, panels, threshold_line

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = {"gaussian": "Gaussian", "boundary": "about boundaries"}


def scores_by_samples(results: xr.Dataset, threshold: float) -> Figure:
    """Layer score at the end against distinct samples, mean over seeds and their range, a panel for each layer."""
    return _by_layer(results, results.layer_score, "layer score", threshold)


def coverage_by_samples(results: xr.Dataset, threshold: float) -> Figure:
    """Share of the teacher nodes that vary and are covered at the end against distinct samples, mean over seeds and
    their range, a panel for each layer."""
    known = results.best_correlation.notnull()
    share = (results.best_correlation > threshold).sum("teacher") / known.sum("teacher")
    return _by_layer(results, share, f"share of teacher nodes above {threshold:g}", 1.0)


def losses_by_samples(results: xr.Dataset, outputs: int) -> Figure:
    """Squared difference averaged over held-out samples and outputs at the end, mean over seeds and their range."""
    with panels(1, 1, width=3.6, height=2.8) as (figure, axes):
        _lines(axes[0, 0], results, 2 / outputs * results.loss)
        if results.loss.notnull().any():
            axes[0, 0].set_yscale("log")
        axes[0, 0].set(ylabel="squared difference, held out", xlabel="distinct samples")
        legend(figure, axes[0, 0], "samples, width")
    return figure


def _by_layer(results: xr.Dataset, values: xr.DataArray, label: str, line: float) -> Figure:
    with panels(1, len(results.layer), width=2.7, height=2.8, sharex=True, sharey=True) as (figure, axes):
        for ax, layer in zip(axes[0], results.layer.values, strict=True):
            _lines(ax, results, values.sel(layer=layer))
            threshold_line(ax, line)
            ax.set(title=f"hidden layer {layer}")
        axes[0, 0].set_ylabel(label)
        figure.supxlabel("distinct samples", fontsize=9)
        legend(figure, axes[0, 0], "samples, width")
    return figure


def _lines(ax: Axes, results: xr.Dataset, values: xr.DataArray) -> None:
    """A line for every kind of samples and width, [kind, samples, multi, seed]; widths differ in line style."""
    order = np.argsort(results.samples.values)
    count = results.samples.values[order]
    for i, kind in enumerate(results.kind.values):
        for multi, dashes in zip(results.multi.values, _dashes(len(results.multi)), strict=True):
            one = values.sel(kind=kind, multi=multi).isel(samples=order)
            colour = look(i)["color"]
            ax.plot(count, one.mean("seed"), label=f"{KINDS[kind]}, {multi}×", linestyle=dashes, **look(i))
            ax.fill_between(count, one.min("seed"), one.max("seed"), color=colour, alpha=0.12, linewidth=0)
    if values.notnull().any():
        amounts_axis(ax, count)


def _dashes(count: int) -> list[tuple[float, tuple[float, ...]]]:
    """Line styles: solid, then dashes that get shorter."""
    return [(0.0, ()) if not i else (0.0, (4.0 / 3.0 ** (i - 1), 1.5)) for i in range(count)]
