"""Figures from labelled results; every function returns a matplotlib figure and writes nothing."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by every kind of colour vision; one for each multiple, from the narrowest student.
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "axes.edgecolor": "#808080",
    "axes.linewidth": 0.7,
    "xtick.color": "#404040",
    "ytick.color": "#404040",
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "savefig.dpi": 160,
}


def l_shape(results: xr.Dataset, threshold: float = 0.95) -> Figure:
    """Fan-out of every student node against its largest correlation, after training, all seeds in one panel.

    results: of a two-layer run, one value of teacher_nodes; rows are strength decays, columns multiples. A constant
    node has no correlation, and is only counted.
    """
    decays, multis = results.strength_decay.values, results.multi.values
    lowest = float(results.max_correlation.min())
    with _panels(len(decays), len(multis), width=1.95, height=2.0, sharex=True, sharey="row") as (figure, axes):
        for row, decay in enumerate(decays):
            for column, multi in enumerate(multis):
                ax, picked = axes[row, column], results.sel(strength_decay=decay, multi=multi)
                x, y = picked.max_correlation.values.ravel(), picked.fan_out.values.ravel()
                nodes, matched = np.isfinite(y).sum(), x > threshold
                for chosen, colour in ((~matched, "#8C8C8C"), (matched, PALETTE[1])):
                    ax.scatter(x[chosen], y[chosen], s=9, color=colour, alpha=0.45, linewidths=0)
                ax.axvline(threshold, color="#404040", linewidth=0.7, linestyle=(0, (4, 3)))
                ax.set_ylim(bottom=0)
                ax.set_xlim(min(-0.05, lowest - 0.05), 1.05)
                _corner(ax, f"{matched.sum()} of {nodes} above {threshold:g}")
                if row == 0:
                    ax.set_title(f"student {multi}× as wide")
                if column == 0:
                    ax.set_ylabel(f"strength decay {decay:g}\nfan-out norm")
        figure.supxlabel("largest correlation of a student node with a teacher node", fontsize=9)
    return figure


def success_rate(results: xr.Dataset, threshold: float = 0.95, early: float = 0.05) -> Figure:
    """Share of seeds that cover each teacher node; columns: early and at the end, rows: strength decays.

    results: of a two-layer run, one value of teacher_nodes. early: the fraction of all steps of the left column.
    """
    steps = [early_step(results, early), int(results.step[-1])]
    decays, success = results.strength_decay.values, (results.best_correlation > threshold).mean("seed")
    with _panels(len(decays), 2, width=3.6, height=2.2, sharex=True, sharey=True) as (figure, axes):
        for row, decay in enumerate(decays):
            for column, step in enumerate(steps):
                ax = axes[row, column]
                for i, multi in enumerate(results.multi.values):
                    line = success.sel(strength_decay=decay, step=step, multi=multi)
                    ax.plot(line.teacher, line, label=f"{multi}×", clip_on=False, **_look(i))
                if row == 0:
                    ax.set_title(f"after {step:,} steps")
                if column == 0:
                    ax.set_ylabel(f"strength decay {decay:g}\nshare of seeds that cover it")
                ax.set_ylim(-0.03, 1.03)
                _integer_axis(ax, len(results.teacher))
        figure.supxlabel(
            f"teacher node, 0 is the strongest under decay  (covered: correlation above {threshold:g})", fontsize=9
        )
        _legend(figure, axes[0, 0], "student width")
    return figure


def loss_curves(results: xr.Dataset) -> Figure:
    """Held-out loss against steps: mean and standard deviation of its logarithm over seeds, a panel for each decay."""
    decays = results.strength_decay.values
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithm = np.log10(results.loss)
    mean, std = logarithm.mean("seed"), logarithm.std("seed")
    with _panels(1, len(decays), width=3.6, height=3.0, sharey=True) as (figure, axes):
        for ax, decay in zip(axes[0], decays, strict=True):
            for i, multi in enumerate(results.multi.values):
                m, s = (a.sel(strength_decay=decay, multi=multi) for a in (mean, std))
                ax.fill_between(m.step, 10 ** (m - s), 10 ** (m + s), color=_look(i)["color"], alpha=0.15, linewidth=0)
                ax.plot(m.step, 10**m, label=f"{multi}×", clip_on=False, **_look(i))
            ax.set(yscale="log", title=f"strength decay {decay:g}", xlabel="SGD steps")
            _step_axis(ax, results)
        axes[0, 0].set_ylabel("held-out loss, mean of ½‖teacher − student‖²")
        _legend(figure, axes[0, 0], "student width")
    return figure


def coverage_curves(results: xr.Dataset, threshold: float = 0.95) -> Figure:
    """Share of teacher nodes covered against steps, mean over seeds, a panel for each decay."""
    decays = results.strength_decay.values
    covered = (results.best_correlation > threshold).mean(["teacher", "seed"])
    with _panels(1, len(decays), width=3.6, height=3.0, sharey=True) as (figure, axes):
        for ax, decay in zip(axes[0], decays, strict=True):
            for i, multi in enumerate(results.multi.values):
                line = covered.sel(strength_decay=decay, multi=multi)
                ax.plot(line.step, line, label=f"{multi}×", clip_on=False, **_look(i))
            ax.set(title=f"strength decay {decay:g}", xlabel="SGD steps", ylim=(-0.03, 1.03))
            _step_axis(ax, results)
        axes[0, 0].set_ylabel(f"share of teacher nodes covered (> {threshold:g})")
        _legend(figure, axes[0, 0], "student width")
    return figure


def layer_scores(results: xr.Dataset) -> Figure:
    """Layer score of every hidden layer against steps of a digits run, mean over seeds, a panel for each layer."""
    scores = results.layer_score.mean("seed")
    with _panels(1, len(results.layer), width=2.7, height=3.0, sharey=True) as (figure, axes):
        for ax, layer in zip(axes[0], results.layer.values, strict=True):
            for i, multi in enumerate(results.multi.values):
                line = scores.sel(layer=layer, multi=multi)
                ax.plot(line.step, line, label=f"{multi}×", clip_on=False, **_look(i))
            ax.set(title=f"hidden layer {layer}", xlabel="training steps")
            _step_axis(ax, results)
        axes[0, 0].set_ylim(top=1.01)
        axes[0, 0].set_ylabel("layer score on held-out images")
        _legend(figure, axes[0, 0], "student width")
    return figure


def sorted_matches(results: xr.Dataset, threshold: float = 0.95) -> Figure:
    """Best correlation of every teacher node of a digits run at the end, mean over seeds, best first, by layer."""
    final = results.best_correlation.isel(step=-1).mean("seed")
    with _panels(1, len(results.layer), width=2.7, height=3.0, sharex=True, sharey=True) as (figure, axes):
        for ax, layer in zip(axes[0], results.layer.values, strict=True):
            for i, multi in enumerate(results.multi.values):
                values = final.sel(layer=layer, multi=multi).values
                values = np.sort(values[np.isfinite(values)])[::-1]
                ax.plot(np.arange(1, len(values) + 1), values, label=f"{multi}×", color=_look(i)["color"])
            ax.axhline(threshold, color="#404040", linewidth=0.7, linestyle=(0, (4, 3)))
            ax.set(title=f"hidden layer {layer}", xlabel="teacher nodes, best first")
        axes[0, 0].set_ylim(top=1.01)
        axes[0, 0].set_ylabel("correlation with its best student node")
        _legend(figure, axes[0, 0], "student width")
    return figure


def early_step(results: xr.Dataset, fraction: float) -> int:
    """The measured step nearest to a fraction of all steps."""
    steps = results.step.values
    return int(steps[np.abs(steps - fraction * steps[-1]).argmin()])


@contextmanager
def _panels(rows: int, columns: int, *, width: float, height: float, **shared: Any) -> Iterator[tuple[Figure, Any]]:
    """A grid of axes [rows, columns] in this module's style, without a window."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context(STYLE):
        engine = ConstrainedLayoutEngine(w_pad=0.09)  # inches; tick labels of neighbours stay apart
        figure = Figure(figsize=(width * columns + 0.8, height * rows + 0.6), layout=engine)
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(rows, columns, squeeze=False, **shared)


def _look(i: int) -> dict[str, Any]:
    return {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)]}


def _legend(figure: Figure, ax: Axes, title: str) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, title=title, loc="outside right center")


def _corner(ax: Axes, text: str) -> None:
    ax.text(0.04, 0.97, text, transform=ax.transAxes, va="top", color="#404040", fontsize=8)


def _integer_axis(ax: Axes, count: int) -> None:
    ax.set_xticks(range(0, count, max(1, count // 10)))


def _step_axis(ax: Axes, results: xr.Dataset) -> None:
    """Steps on a logarithmic axis that has room for 0."""
    first, last = (int(step) for step in results.step.values[[1, -1]])
    powers = [10**k for k in range(len(str(last))) if 2 * first <= 10**k <= last]
    ax.set_xscale("symlog", linthresh=first, linscale=0.3)
    ax.set_xticks([0, *powers], [f"{tick:,}" for tick in (0, *powers)])
    ax.set_xticks([], minor=True)
    ax.set_xlim(0, last)
