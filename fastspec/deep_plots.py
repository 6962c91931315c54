"""Figures from the labelled results of a deep run; every function returns a matplotlib figure and writes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastspec.figures import (
    PALETTE,
    at,
    corner,
    early_step,
    legend,
    look,
    panels,
    threshold_line,
    time_axis,
    times,
    unit,
)

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

SMALLEST = 1e-6  # of what is drawn of 1 - correlation: moments are known to about 1e-7


def kinds(results: xr.Dataset) -> list[tuple[str, dict[str, Any]]]:
    """The kinds of students of a run, as a label says them and as `sel` takes them."""
    several = {name: len(results[name]) > 1 for name in ("samples", "multi")}
    found = []
    for samples in results.samples.values:
        for multi in results.multi.values:
            parts = [f"{multi}×"] if several["multi"] or not several["samples"] else []
            parts += [f"{samples:,} samples"] if several["samples"] else []
            found.append((", ".join(parts), {"samples": samples, "multi": multi}))
    return found


def scores(results: xr.Dataset) -> Figure:
    """1 - layer score of every hidden layer while students learn, mean over seeds, a panel for each layer."""
    return _by_layer(results, 1 - results.layer_score.mean("seed"), "1 − layer score", log=True)


def ranks(results: xr.Dataset) -> Figure:
    """Share of student nodes that correlate better with a teacher node than its final winner, mean over all."""
    return _by_layer(results, results["rank"].mean(["seed", "teacher"]), "rank of the final winner", log=False)


def _by_layer(results: xr.Dataset, values: xr.DataArray, label: str, *, log: bool) -> Figure:
    with panels(1, len(results.layer), width=2.4, height=2.7, sharex=True, sharey=True) as (figure, axes):
        for ax, layer in zip(axes[0], results.layer.values, strict=True):
            for i, (name, chosen) in enumerate(kinds(results)):
                line = values.sel(**chosen, layer=layer)
                shown = np.maximum(line, SMALLEST) if log else line
                ax.plot(times(results), shown, label=name, **look(i, len(results.step)))
            ax.set(title=f"hidden layer {layer}", yscale="log" if log else "linear")
            time_axis(ax, results)
        axes[0, 0].set_ylabel(label)
        figure.supxlabel(unit(results), fontsize=9)
        legend(figure, axes[0, 0], "students")
    return figure


def blocks(results: xr.Dataset) -> Figure:
    """Norms of the blocks of E[beta] and E[H] by layer, of the first seed of the last kind of students."""
    one = results.sel(kinds(results)[-1][1]).isel(seed=0)
    with panels(2, len(results.layer), width=2.4, height=2.1, sharex=True, sharey="row") as (figure, axes):
        for row, (name, label) in enumerate((("beta_blocks", "E[β]"), ("h_blocks", "E[H]"))):
            for ax, layer in zip(axes[row], results.layer.values, strict=True):
                for i, block in enumerate(results.block.values):
                    line = one[name].sel(layer=layer, block=block)
                    ax.plot(times(results), line, label=block, **look(i, len(results.step)))
                ax.set_yscale("log")
                time_axis(ax, results)
                if row == 0:
                    ax.set_title(f"hidden layer {layer}")
            axes[row, 0].set_ylabel(f"norm of a block of {label}")
        figure.supxlabel(unit(results), fontsize=9)
        legend(figure, axes[0, 0], "student nodes")
    return figure


def losses(results: xr.Dataset, outputs: int) -> Figure:
    """Squared difference averaged over samples and outputs, on held-out inputs and in training, mean over seeds."""
    with panels(1, 2, width=3.3, height=2.8, sharex=True, sharey=True) as (figure, axes):
        for ax, name, title in zip(axes[0], ("loss", "loss_train"), ("held-out inputs", "training"), strict=True):
            for i, (label, chosen) in enumerate(kinds(results)):
                line = 2 / outputs * results[name].sel(chosen).mean("seed")
                ax.plot(times(results), line, label=label, **look(i, len(results.step)))
            ax.set(title=title, yscale="log")
            time_axis(ax, results)
        axes[0, 0].set_ylabel("mean squared difference")
        figure.supxlabel(unit(results), fontsize=9)
        legend(figure, axes[0, 0], "students")
    return figure


def matches(results: xr.Dataset, threshold: float = 0.95) -> Figure:
    """Best correlation of every teacher node at the end, best first, mean over seeds, a panel for each layer."""
    final = results.best_correlation.isel(step=-1)
    with panels(1, len(results.layer), width=2.4, height=2.7, sharey=True) as (figure, axes):
        for ax, layer in zip(axes[0], results.layer.values, strict=True):
            for i, (label, chosen) in enumerate(kinds(results)):
                values = -np.sort(-final.sel(**chosen, layer=layer).values, axis=-1)  # [seed, teacher], NaN last
                values = values[:, np.isfinite(values).any(0)]
                ax.plot(np.arange(1, values.shape[1] + 1), np.nanmean(values, 0), label=label, color=look(i)["color"])
            threshold_line(ax, threshold)
            ax.set(title=f"hidden layer {layer}", xlabel="teacher nodes, best first")
        axes[0, 0].set_ylim(top=1.01)
        axes[0, 0].set_ylabel("correlation with its best student node")
        legend(figure, axes[0, 0], "students")
    return figure


def deep_l_shape(results: xr.Dataset, threshold: float = 0.95) -> Figure:
    """Strength of every student node against its largest correlation, of the last kind of students, all seeds; columns:
    layers, rows: the start, about a twentieth of the steps, and the end."""
    chosen = kinds(results)[-1][1]
    picked = results.sel(chosen)
    steps = [0, early_step(results, 0.05), int(results.step[-1])]
    layers = results.layer.values
    with panels(3, len(layers), width=2.2, height=1.9, sharex=True, sharey="col") as (figure, axes):
        for row, step in enumerate(steps):
            for column, layer in enumerate(layers):
                ax, one = axes[row, column], picked.sel(step=step, layer=layer)
                x, y = one.max_correlation.values.ravel(), one.strength.values.ravel()
                matched = x > threshold
                for shown, colour in ((~matched, "#8C8C8C"), (matched, PALETTE[1])):
                    ax.scatter(x[shown], y[shown], s=7, color=colour, alpha=0.5, linewidths=0)
                threshold_line(ax, threshold, vertical=True)
                corner(ax, f"{matched.sum()} of {np.isfinite(y).sum()}")
                top = float(picked.strength.sel(step=steps, layer=layer).max())
                ax.set(xlim=(-0.05, 1.05), ylim=(0, 1.15 * top))
                if row == 0:
                    ax.set_title(f"hidden layer {layer}")
                if column == 0:
                    ax.set_ylabel(f"after {at(results, step)}\nstrength")
        figure.supxlabel("largest correlation of a student node with a teacher node", fontsize=9)
    return figure
