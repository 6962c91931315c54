"""Figures of theory beside measurement; every function returns a matplotlib figure and writes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastspec.figures import PALETTE, corner, legend, look, panels
from fastspec.moments import CrossMoments
from fastspec.theory.gaussian import GaussianMoments

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

EXACT = {"color": "#202020", "linewidth": 1.2}


def predicted_beside_measured(predicted: GaussianMoments, measured: CrossMoments) -> Figure:
    """Every pair of nodes: correlation, co-activation and boundary observation as measured, against what Gaussian
    inputs predict. measured: of the same layers, with coactivation=True."""
    samples = measured.count.double()
    pairs = {
        "correlation": (predicted.correlation(), measured.correlation()),
        "co-activation": (predicted.coactivation(), measured.coactivation()),
        "boundary observation": (predicted.observation(), measured.observation() / samples),
    }
    with panels(1, 3, width=2.6, height=2.6) as (figure, axes):
        for ax, (title, tensors) in zip(axes[0], pairs.items(), strict=True):
            x, y = (t.detach().cpu().numpy().ravel() for t in tensors)
            ax.scatter(x, y, s=9, color=PALETTE[1], alpha=0.5, linewidths=0)
            ends = [np.nanmin(x), np.nanmax(x)]
            ax.plot(ends, ends, **EXACT)
            corner(ax, f"largest difference {np.nanmax(np.abs(x - y)):.1e}")
            ax.set(title=title, xlabel="predicted")
        axes[0, 0].set_ylabel(f"measured, {int(samples):,} samples")
    return figure


def online_loss(results: xr.Dataset) -> Figure:
    """The loss while students learn online: by the equation, and of simulated students, mean and range over seeds.

    results: of an ode run.
    """
    with panels(1, 1, width=5.2, height=3.2) as (figure, axes):
        ax = axes[0, 0]
        for i, d in enumerate(results.inputs.values):
            loss = results.simulated_loss.sel(inputs=d)
            ax.fill_between(
                results.time, loss.min("seed"), loss.max("seed"), color=look(i)["color"], alpha=0.2, linewidth=0
            )
            ax.plot(results.time, loss.mean("seed"), label=f"d = {d}", color=look(i)["color"])
        ax.plot(results.time, results.loss, label="equation", linestyle="--", **EXACT)
        ax.set(yscale="log", xlabel="steps / d", ylabel="generalisation error")
        legend(figure, ax, "")
    return figure


def online_order_parameters(results: xr.Dataset) -> Figure:
    """R of every pair of nodes and Q of every student node: lines by the equation, points simulated, mean over seeds.

    results: of an ode run; the largest d.
    """
    d = int(results.inputs.max())
    r, q = results.simulated_cross.sel(inputs=d).mean("seed"), results.simulated_student.sel(inputs=d).mean("seed")
    every = slice(None, None, max(1, len(results.time) // 30))
    with panels(1, 2, width=4.0, height=3.2, sharex=True) as (figure, axes):
        for k in results.student_node.values:
            own = {"student_node": k, "other_student_node": k}
            _line_and_points(axes[0, 1], results, results.student.sel(own), q.sel(own), every, int(k))
            for j in results.teacher_node.values:
                pair = {"teacher_node": j, "student_node": k}
                _line_and_points(axes[0, 0], results, results.cross.sel(pair), r.sel(pair), every, int(k))
        axes[0, 0].set(title="R, teacher with student nodes", xlabel="steps / d")
        axes[0, 1].set(title="Q, student nodes with themselves", xlabel="steps / d")
        legend(figure, axes[0, 1], f"student node\nd = {d}")
    return figure


def _line_and_points(ax, results: xr.Dataset, line: xr.DataArray, points: xr.DataArray, every: slice, k: int) -> None:
    ax.plot(results.time, line, color=look(k)["color"])
    ax.plot(results.time[every], points[every], label=str(k), linestyle="", markersize=3, **look(k))


def online_deviation(results: xr.Dataset) -> Figure:
    """How far simulated order parameters are from the equation, root mean square over pairs, for every d.

    results: of an ode run. Single students, and the mean of all seeds.
    """
    difference = results.simulated_cross - results.cross
    single = np.sqrt((difference**2).mean(("teacher_node", "student_node", "seed")))
    together = np.sqrt((difference.mean("seed") ** 2).mean(("teacher_node", "student_node")))
    with panels(1, 1, width=5.2, height=3.0) as (figure, axes):
        ax = axes[0, 0]
        for i, d in enumerate(results.inputs.values):
            ax.plot(results.time, single.sel(inputs=d), label=f"d = {d}", color=look(i)["color"])
            ax.plot(results.time, together.sel(inputs=d), linestyle=":", color=look(i)["color"])
        ax.set(xlabel="steps / d", ylabel="deviation of R (dotted: mean of seeds)")
        legend(figure, ax, "")
    return figure
