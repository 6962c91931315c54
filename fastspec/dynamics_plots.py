"""Figures of how students specialise over time, from the results of a two-layer run with one value of teacher_nodes;
every function returns a matplotlib figure and writes nothing."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from fastspec.figures import (
    PALETTE,
    at,
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
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FATES = {"teacher node 0": PALETTE[0], "another teacher node": PALETTE[1], "none": "#B0B0B0"}


def ranks_of_winners(results: xr.Dataset, threshold: float = 0.95) -> Figure:
    """At earlier times, the rank of the student node that covers a teacher node at the end ("luck"): mean and quartiles
    over seeds and covered teacher nodes, a panel for each decay."""
    covered = results.best_correlation.isel(step=-1) > threshold
    rank = results["rank"].where(covered)
    over = ["seed", "teacher"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where nothing is covered there is no rank
        mean, low, high = rank.mean(over), rank.quantile(0.25, over), rank.quantile(0.75, over)
    with panel_each(results.strength_decay.values, sharex=True, sharey=True) as (figure, each):
        for decay, ax in each:
            for i, multi in enumerate(results.multi.values):
                chosen = {"strength_decay": decay, "multi": multi}
                style = look(i, results.sizes["step"])
                when = times(results)
                ax.fill_between(when, low.sel(chosen), high.sel(chosen), color=style["color"], alpha=0.12, linewidth=0)
                ax.plot(when, mean.sel(chosen), label=f"{multi}×", **style)
            threshold_line(ax, 0.5)
            ax.set(title=f"strength decay {decay:g}", ylim=(-0.02, 0.62))
            time_axis(ax, results)
        figure.supxlabel(unit(results), fontsize=9)
        figure.supylabel("share of nodes ahead of the winner", fontsize=9)
        legend(figure, each[0][1], "student width")
    return figure


def students_per_teacher(results: xr.Dataset, threshold: float = 0.95) -> Figure:
    """How many nodes of the widest students have each teacher node as their best, mean over seeds; columns: decays,
    rows: at any correlation, and above the threshold."""
    decays, multi = results.strength_decay.values, int(results.multi.max())
    counts = results.students.sel(multi=multi).mean("seed")  # [decay, step, level, teacher]
    levels = {
        f"best teacher of so many\nof the {multi}× student's nodes": 0.0,
        f"the same, above {threshold:g}": threshold,
    }
    m = results.sizes["teacher"]
    with panels(2, len(decays), width=max(1.95, 5 / len(decays)), height=2.2, sharex=True, sharey="row") as (
        figure,
        axes,
    ):
        for row, (label, level) in enumerate(levels.items()):
            for column, decay in enumerate(decays):
                ax = axes[row, column]
                for teacher in reversed(range(m)):  # the strongest on top
                    line = counts.sel(strength_decay=decay, level=level, teacher=teacher)
                    ax.plot(times(line), line, color=_strength(teacher, m), linewidth=1.1)
                ax.set_yscale("symlog", linthresh=1)
                time_axis(ax, results)
                if row == 0:
                    ax.set_title(f"strength decay {decay:g}")
                if column == 0:
                    ax.set_ylabel(label)
            axes[row, 0].set_ylim(bottom=0, top=max(1.0, 1.2 * float(counts.sel(level=level).max())))
        figure.supxlabel(unit(results), fontsize=9)
        _strength_bar(figure, axes, m)
    return figure


def gradient_alignment(results: xr.Dataset) -> Figure:
    """Largest per-sample gradient of a student's hidden layer against the angle between each teacher node and its best
    student node, at all times where gradients were measured; a panel for each decay."""
    measured = results.isel(step=np.isfinite(results.gradient_max).any(["strength_decay", "multi", "seed"]).values)
    m = results.sizes["teacher"]
    with panel_each(results.strength_decay.values, sharex=True, sharey=True) as (figure, each):
        for decay, ax in each:
            one = measured.sel(strength_decay=decay)
            x, y = np.broadcast_arrays(one.gradient_max.values[..., None], one.sine.values)
            order = np.random.default_rng(0).permutation(x.size)  # no teacher node hides the others
            teacher = np.broadcast_to(np.arange(m), x.shape).ravel()[order]
            colours = np.array([_strength(j, m) for j in range(m)])[teacher]
            ax.scatter(x.ravel()[order], y.ravel()[order], s=4, c=colours, alpha=0.5, linewidths=0)
            ax.set(xscale="log", yscale="log", title=f"strength decay {decay:g}")
        epochs = ", ".join(at(results, int(step)).split()[0] for step in measured.step.values)
        figure.supxlabel(
            f"largest |g₁| over training samples and student nodes  ({unit(results)} {epochs})", fontsize=9
        )
        figure.supylabel("sin of the angle to the best student node", fontsize=9)
        _strength_bar(figure, np.array([ax for _, ax in each]), m)
    return figure


def trajectories(results: xr.Dataset, decay: float, threshold: float = 0.95, seed: int = 0) -> Figure:
    """Every node of the students of one seed and decay over time, coloured by what it is at the end; columns:
    multiples, rows: correlation with teacher node 0 and with the best teacher node, fan-out."""
    rows = {
        "node_correlation_first": "correlation with\nteacher node 0",
        "node_correlation": "correlation with its\nbest teacher node",
        "node_fan_out": "fan-out norm",
    }
    multis = results.multi.values
    one = results.sel(strength_decay=decay, followed=seed)
    width = 1.9 + 2.2 / len(multis)  # the legend takes as much as a panel
    with panels(3, len(multis), width=width, height=1.9, sharex=True, sharey="row") as (figure, axes):
        for column, multi in enumerate(multis):
            nodes = one.sel(multi=multi)
            matched = (nodes.node_correlation.isel(step=-1) > threshold).values
            first = (nodes.node_teacher.isel(step=-1) == 0).values
            for row, (name, label) in enumerate(rows.items()):
                ax, lines = axes[row, column], nodes[name].values  # [step, student]
                for fate, chosen in zip(reversed(FATES), (~matched, matched & ~first, matched & first), strict=True):
                    ax.plot(times(results), lines[:, chosen], color=FATES[fate], linewidth=0.8, alpha=0.6)
                time_axis(ax, results)
                if row == 0:
                    ax.set_title(f"student {multi}× as wide")
                if column == 0:
                    ax.set_ylabel(label)
        figure.supxlabel(unit(results), fontsize=9)
        for fate, colour in FATES.items():
            axes[0, 0].plot([], [], color=colour, label=fate)
        legend(figure, axes[0, 0], "at the end it covers")
    return figure


def _strength(teacher: int, m: int) -> Any:
    """The colour of a teacher node: the strongest dark."""
    from matplotlib import colormaps

    return colormaps["viridis"](teacher / max(1, m - 1) * 0.92)


def _strength_bar(figure: Figure, axes: np.ndarray, m: int) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    colours = ListedColormap([_strength(j, m) for j in range(m)])
    scale = ScalarMappable(Normalize(-0.5, m - 0.5), colours)
    ticks = range(0, m, max(1, m // 5))
    shown: list[Axes] = list(axes.ravel())
    figure.colorbar(scale, ax=shown, ticks=list(ticks), label="teacher node", fraction=0.03, aspect=30)
