"""Figures from labelled results; every function returns a matplotlib figure and writes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastspec.figures import (
    PALETTE,
    at,
    corner,
    early_step,
    integer_axis,
    legend,
    look,
    panel_each,
    panels,
    threshold_line,
    time_axis,
    times,
    unit,
)

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


def l_shape(results: xr.Dataset, threshold: float = 0.95) -> Figure:
    """Fan-out of every student node against its largest correlation, after training, all seeds in one panel.

    results: of a two-layer run, one value of teacher_nodes; rows are strength decays, columns multiples. A constant
    node has no correlation, and is only counted.
    """
    decays, multis = results.strength_decay.values, results.multi.values
    lowest = float(results.max_correlation.min())
    width = max(1.95, 4 / len(multis))  # room for the label of all panels
    with panels(len(decays), len(multis), width=width, height=2.0, sharex=True, sharey="row") as (figure, axes):
        for row, decay in enumerate(decays):
            fan_out = results.fan_out.sel(strength_decay=decay).values
            largest = fan_out.max(initial=0, where=np.isfinite(fan_out))
            for column, multi in enumerate(multis):
                ax, picked = axes[row, column], results.sel(strength_decay=decay, multi=multi)
                x, y = picked.max_correlation.values.ravel(), picked.fan_out.values.ravel()
                nodes, matched = np.isfinite(y).sum(), x > threshold
                for chosen, colour in ((~matched, "#8C8C8C"), (matched, PALETTE[1])):
                    ax.scatter(x[chosen], y[chosen], s=9, color=colour, alpha=0.45, linewidths=0)
                threshold_line(ax, threshold, vertical=True)
                ax.set_ylim(0, 1.2 * largest or 1)  # all nodes of all multiples, and the corner's text above them
                ax.set_xlim(min(-0.05, lowest - 0.05), 1.05)
                corner(ax, f"{matched.sum()} of {nodes} above {threshold:g}")
                if row == 0:
                    ax.set_title(f"student {multi}× as wide")
                if column == 0:
                    ax.set_ylabel(f"strength decay {decay:g}\nfan-out norm")
        figure.supxlabel("largest correlation of a student node with a teacher node", fontsize=9)
    return figure


def success_rate(results: xr.Dataset, threshold: float = 0.95, early: float = 0.05) -> Figure:
    """Share of seeds that cover each teacher node; rows: early and at the end, columns: strength decays.

    results: of a two-layer run, one value of teacher_nodes. early: the fraction of all steps of the upper row.
    """
    steps = [early_step(results, early), int(results.step[-1])]
    decays, success = results.strength_decay.values, (results.best_correlation > threshold).mean("seed")
    with panels(2, len(decays), width=max(1.95, 5 / len(decays)), height=2.2, sharex=True, sharey=True) as (
        figure,
        axes,
    ):
        for column, decay in enumerate(decays):
            for row, step in enumerate(steps):
                ax = axes[row, column]
                for i, multi in enumerate(results.multi.values):
                    line = success.sel(strength_decay=decay, step=step, multi=multi)
                    ax.plot(line.teacher, line, label=f"{multi}×", clip_on=False, **look(i))
                if row == 0:
                    ax.set_title(f"strength decay {decay:g}")
                if column == 0:
                    ax.set_ylabel(f"after {at(results, step)}\nshare of seeds that cover it")
                ax.set_ylim(-0.03, 1.03)
                integer_axis(ax, len(results.teacher))
        figure.supxlabel(
            f"teacher node, 0 is the strongest under decay  (covered: correlation above {threshold:g})", fontsize=9
        )
        legend(figure, axes[0, 0], "student width")
    return figure


def loss_curves(results: xr.Dataset) -> Figure:
    """Held-out loss over time: mean and standard deviation of its logarithm over seeds, a panel for each decay."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithm = np.log10(results.loss)
    mean, std = logarithm.mean("seed"), logarithm.std("seed")
    with panel_each(results.strength_decay.values, sharex=True, sharey=True) as (figure, each):
        for decay, ax in each:
            for i, multi in enumerate(results.multi.values):
                m, s = (a.sel(strength_decay=decay, multi=multi) for a in (mean, std))
                style = look(i, len(m))
                ax.fill_between(times(m), 10 ** (m - s), 10 ** (m + s), color=style["color"], alpha=0.15, linewidth=0)
                ax.plot(times(m), 10**m, label=f"{multi}×", **style)
            ax.set(yscale="log", title=f"strength decay {decay:g}")
            time_axis(ax, results)
        figure.supxlabel(unit(results), fontsize=9)
        figure.supylabel("held-out loss, mean of ½‖teacher − student‖²", fontsize=9)
        legend(figure, each[0][1], "student width")
    return figure


def coverage_curves(results: xr.Dataset, threshold: float = 0.95) -> Figure:
    """Share of teacher nodes covered over time, mean over seeds, a panel for each decay."""
    covered = (results.best_correlation > threshold).mean(["teacher", "seed"])
    with panel_each(results.strength_decay.values, sharex=True, sharey=True) as (figure, each):
        for decay, ax in each:
            for i, multi in enumerate(results.multi.values):
                line = covered.sel(strength_decay=decay, multi=multi)
                ax.plot(times(line), line, label=f"{multi}×", clip_on=False, **look(i, len(line)))
            ax.set(title=f"strength decay {decay:g}", ylim=(-0.03, 1.03))
            time_axis(ax, results)
        figure.supxlabel(unit(results), fontsize=9)
        figure.supylabel(f"share of teacher nodes covered (> {threshold:g})", fontsize=9)
        legend(figure, each[0][1], "student width")
    return figure


def layer_scores(results: xr.Dataset) -> Figure:
    """Layer score of every hidden layer against steps of a digits run, mean over seeds, a panel for each layer."""
    scores = results.layer_score.mean("seed")
    with panels(1, len(results.layer), width=2.7, height=3.0, sharey=True) as (figure, axes):
        for ax, layer in zip(axes[0], results.layer.values, strict=True):
            for i, multi in enumerate(results.multi.values):
                line = scores.sel(layer=layer, multi=multi)
                ax.plot(times(line), line, label=f"{multi}×", clip_on=False, **look(i))
            ax.set(title=f"hidden layer {layer}", xlabel="training steps")
            time_axis(ax, results)
        axes[0, 0].set_ylim(top=1.01)
        axes[0, 0].set_ylabel("layer score on held-out images")
        legend(figure, axes[0, 0], "student width")
    return figure


def sorted_matches(results: xr.Dataset, threshold: float = 0.95) -> Figure:
    """Best correlation of every teacher node of a digits run at the end, mean over seeds, best first, by layer."""
    final = results.best_correlation.isel(step=-1).mean("seed")
    with panels(1, len(results.layer), width=2.7, height=3.0, sharex=True, sharey=True) as (figure, axes):
        for ax, layer in zip(axes[0], results.layer.values, strict=True):
            for i, multi in enumerate(results.multi.values):
                values = final.sel(layer=layer, multi=multi).values
                values = np.sort(values[np.isfinite(values)])[::-1]
                ax.plot(np.arange(1, len(values) + 1), values, label=f"{multi}×", color=look(i)["color"])
            threshold_line(ax, threshold)
            ax.set(title=f"hidden layer {layer}", xlabel="teacher nodes, best first")
        axes[0, 0].set_ylim(top=1.01)
        axes[0, 0].set_ylabel("correlation with its best student node")
        legend(figure, axes[0, 0], "student width")
    return figure
