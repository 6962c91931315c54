"""Figures from the labelled results of an ablation; every function returns a matplotlib figure and writes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastspec.figures import legend, look, panels

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
    pairs, the base first."""
    base = results.isel(cell=0)
    others = [name for name in FACTORS if name != factor]
    same = np.logical_and.reduce([results[name].values == base[name].values for name in others])
    cells = [results.isel(cell=i) for i in np.flatnonzero(same)]
    return [(shown(factor, cell[factor].item()), cell) for cell in cells]


def scores_by_epoch(results: xr.Dataset, factor: str) -> Figure:
    """1 - layer score after every epoch for each value of a factor, mean over seeds, a panel for each layer."""
    with panels(1, len(results.layer), width=2.4, height=2.7, sharex=True, sharey=True) as (figure, axes):
        for ax, layer in zip(axes[0], results.layer.values, strict=True):
            for i, (label, cell) in enumerate(slices(results, factor)):
                line = 1 - cell.layer_score.sel(layer=layer).mean("seed")
                ax.plot(results.epoch, np.maximum(line, SMALLEST), label=label, **look(i, len(results.epoch)))
            ax.set(title=f"hidden layer {layer}", yscale="log")
            ax.set_xlim(0, int(results.epoch[-1]))
        axes[0, 0].set_ylabel("1 − layer score")
        figure.supxlabel("epochs", fontsize=9)
        legend(figure, axes[0, 0], FACTORS[factor])
    return figure
