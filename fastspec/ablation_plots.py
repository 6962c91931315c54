"""Figures from the labelled results of an ablation; every function returns a matplotlib figure and writes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastspec.figures import integer_axis, legend, look, panels, threshold_line

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

FACTORS = {  # options whose values make the grid, and what they are called
    "multi": "student width",
    "batch_norm": "batch norm",
    "teacher": "teacher",
    "batch_size": "batch size",
    "lr": "learning rate",
    "outputs": "outputs",
    "data_std": "input std",
}
SMALLEST = 1e-6  # of what is drawn of 1 - layer score: moments are known to about 1e-7


def shown(factor: str, value: Any) -> str:
    """A value of a factor in words."""
    return f"{value}×" if factor == "multi" else f"{value:g}" if factor in ("lr", "data_std") else str(value)


def slices(results: xr.Dataset, factor: str) -> list[tuple[str, xr.Dataset]]:
    """The cells in which a factor takes its values while the others are as in the first cell, the base: (label, cell)
    pairs, numbers in their order, the base marked."""
    base = results.isel(cell=0)
    others = [name for name in FACTORS if name != factor]
    same = np.logical_and.reduce([results[name].values == base[name].values for name in others])
    cells = [results.isel(cell=i) for i in np.flatnonzero(same)]
    if results[factor].dtype.kind in "if":
        cells.sort(key=lambda cell: float(cell[factor]))
    marks = [" (base)" if len(cells) > 1 and int(cell.cell) == 0 else "" for cell in cells]
    return [(shown(factor, cell[factor].item()) + mark, cell) for cell, mark in zip(cells, marks, strict=True)]


def changes(results: xr.Dataset) -> list[tuple[str, str, xr.DataArray]]:
    """Every single change of the base: what is changed, its value in words, and by how much the layer score at the end
    is larger than the base's of the same seed, [seed, layer]."""
    base = results.isel(cell=0, epoch=-1).layer_score
    return [
        (what, shown(factor, cell[factor].item()), (cell.isel(epoch=-1).layer_score - base).transpose("seed", "layer"))
        for factor, what in FACTORS.items()
        for _, cell in slices(results, factor)
        if int(cell.cell) != int(base.cell)
    ]


def changed_scores(results: xr.Dataset) -> Figure:
    """By how much every change of the base changes the layer score at the end: seeds and their mean, a panel for each
    layer."""
    found = changes(results)
    places = np.arange(len(found))[::-1]
    height = 0.2 * len(found) + 0.5
    with panels(1, len(results.layer), width=2.2, height=height, sharex=True, sharey=True) as (figure, axes):
        for ax, layer in zip(axes[0], results.layer.values, strict=True):
            for place, (what, _, change) in zip(places, found, strict=True):
                colour = look(list(FACTORS.values()).index(what))["color"]
                values = change.sel(layer=layer).values
                ax.plot(values, np.full(len(values), place), "o", color=colour, alpha=0.4, markersize=3)
                if np.isfinite(values).any():
                    ax.plot(np.nanmean(values), place, "|", color=colour, markersize=11, markeredgewidth=2)
            threshold_line(ax, 0.0, vertical=True)
            ax.set(title=f"hidden layer {layer}")
        axes[0, 0].set_yticks(places, [f"{what} {value}" for what, value, _ in found])
        figure.supxlabel("layer score − layer score of the base", fontsize=9)
    return figure


def scores_by_epoch(results: xr.Dataset, factor: str) -> Figure:
    """1 - layer score after every epoch for each value of a factor, mean over seeds and their range, a panel for each
    layer."""
    with panels(1, len(results.layer), width=2.4, height=2.7, sharex=True, sharey=True) as (figure, axes):
        for ax, layer in zip(axes[0], results.layer.values, strict=True):
            for i, (label, cell) in enumerate(slices(results, factor)):
                lines = np.maximum(1 - cell.layer_score.sel(layer=layer), SMALLEST)
                style = look(i, len(results.epoch))
                ax.plot(results.epoch, lines.mean("seed"), label=label, **style)
                ax.fill_between(
                    results.epoch, lines.min("seed"), lines.max("seed"), color=style["color"], alpha=0.12, linewidth=0
                )
            ax.set(title=f"hidden layer {layer}", yscale="log")
            ax.set_xlim(0, int(results.epoch[-1]))
            integer_axis(ax, len(results.epoch))
        axes[0, 0].set_ylabel("1 − layer score")
        figure.supxlabel("epochs", fontsize=9)
        legend(figure, axes[0, 0], FACTORS[factor])
    return figure
