"""The report of a matrix-dynamics run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastspec.figures import PALETTE, panels, time_axis
from fastspec.report import Block, Heading, Picture, Table, Text

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

LUCKY, OTHERS = PALETTE[1], "#8C8C8C"


def matrix_dynamics_blocks(results: xr.Dataset, config: Mapping[str, Any], name: str = "") -> list[Block]:
    """The report of a matrix-dynamics run; `name` goes before the names of its figures."""
    widths = "-".join(map(str, config["widths"]))
    return [
        Heading("Nodes that start near a teacher node, and the others"),
        Text(
            f"A {widths} teacher; students with {config['multi']} times as many hidden nodes start as the teacher plus "
            f"noise of {config['init_std']:g} and follow the matrix dynamics for {config['steps']:,} steps of "
            f"{config['batch_size']} fresh samples at a learning rate of {config['lr']:g}. Weight vector and bias of "
            "every node have a joint norm of 1. The first nodes of a hidden layer start near a teacher node (lucky). "
            "Source: Luck Matters (Tian et al. 2019), theorem 5."
        ),
        fan_out_table(results, config["widths"][1:-1]),
        Picture(
            f"{name}fan-out",
            "Fan-out of every student node while the dynamics run, first seed; lucky nodes in blue.",
            fan_out_over_steps(results, config["widths"][1:-1]),
        ),
        Picture(
            f"{name}l-shape",
            "Fan-out of every student node against its largest correlation, at the end, all seeds; lucky nodes in "
            "blue.",
            l_shape(results, config["widths"][1:-1]),
        ),
    ]


def fan_out_table(results: xr.Dataset, hidden: Sequence[int]) -> Table:
    """Fan-outs of lucky nodes and others at the end, one row for each method, layer and seed."""
    rows = []
    for method in results.dynamics.values:
        for layer, nodes in enumerate(hidden, start=1):
            for seed in results.seed.values:
                final = results.isel(step=-1).sel(dynamics=method, layer=layer, seed=seed)
                lucky, others = split(final.fan_out.values, nodes)
                cells = [f"{lucky.min():.3f} – {lucky.max():.3f}", f"{np.median(others):.1e}", f"{others.max():.1e}"]
                scores = [f"{float(final.layer_score):.4f}", f"{float(final.loss):.1e}"]
                rows.append([f"{method}, layer {layer}, seed {seed}", *cells, *scores])
    columns = ("run", "lucky", "others, median", "others, largest", "layer score", "loss")
    return Table("Fan-out of the student nodes at the end", columns, rows)


def split(nodes: np.ndarray, teacher_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Values [.., student] of lucky nodes and of the others, without padding."""
    others = nodes[..., teacher_nodes:]
    return nodes[..., :teacher_nodes], others[np.isfinite(others)]


def fan_out_over_steps(results: xr.Dataset, hidden: Sequence[int]) -> Figure:
    """One panel for each method and hidden layer."""
    methods = results.dynamics.values
    with panels(len(hidden), len(methods), width=3.4, height=2.6, sharex=True, sharey=True) as (figure, axes):
        for row, nodes in enumerate(hidden):
            for column, method in enumerate(methods):
                ax, picked = axes[row, column], results.isel(seed=0, layer=row).sel(dynamics=method)
                for student in reversed(picked.student.values):
                    colour = LUCKY if student < nodes else OTHERS
                    ax.plot(picked.step, picked.fan_out.sel(student=student), color=colour, linewidth=0.9, alpha=0.8)
                ax.set_yscale("log")
                time_axis(ax, results)
                ax.set_title(f"{method.replace('_', ' ')}, hidden layer {row + 1}")
                if column == 0:
                    ax.set_ylabel("fan-out norm")
        figure.supxlabel("steps", fontsize=9)
    return figure


def l_shape(results: xr.Dataset, hidden: Sequence[int]) -> Figure:
    """One panel for each method and hidden layer."""
    methods = results.dynamics.values
    with panels(len(hidden), len(methods), width=3.4, height=2.6, sharex=True, sharey=True) as (figure, axes):
        for row, nodes in enumerate(hidden):
            for column, method in enumerate(methods):
                ax, final = axes[row, column], results.isel(step=-1, layer=row).sel(dynamics=method)
                for chosen, colour in ((slice(nodes, None), OTHERS), (slice(nodes), LUCKY)):
                    part = final.isel(student=chosen)
                    values = part.max_correlation.values.ravel(), part.fan_out.values.ravel()
                    ax.scatter(*values, s=9, color=colour, alpha=0.5, linewidths=0)
                ax.set_title(f"{method.replace('_', ' ')}, hidden layer {row + 1}")
                ax.set_ylim(bottom=-0.03)
                if column == 0:
                    ax.set_ylabel("fan-out norm")
        figure.supxlabel("largest correlation of a student node with a teacher node", fontsize=9)
    return figure
