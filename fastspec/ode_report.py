"""The report of an ode run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastspec import theory_plots
from fastspec.report import Block, Heading, Picture, Table, Text

if TYPE_CHECKING:
    import xarray as xr


def ode_blocks(results: xr.Dataset, config: Mapping[str, Any], name: str = "") -> list[Block]:
    """The report of an ode run; `name` goes before the names of its figures."""
    seeds = results.sizes["seed"]
    return [
        Heading("Online learning: order parameters"),
        Text(
            f"Students of {config['student_nodes']} {config['activation']} nodes learn a teacher of "
            f"{config['teacher_nodes']} by online SGD at a learning rate of {config['rate']:g} / d and batches of "
            f"{config['batch_size']}; {seeds} for each number of inputs d, beside the equation that holds for large d "
            "(Saad & Solla 1995)."
        ),
        _deviations(results),
        _milestones(results),
        Picture(
            f"{name}loss",
            "Generalisation error: dashed by the equation; lines are means over students, bands their range.",
            theory_plots.online_loss(results),
        ),
        Picture(
            f"{name}order-parameters",
            "Order parameters: lines by the equation, points means over students. Nodes are alike on the plateau, and "
            "one of each student's specialises where lines part.",
            theory_plots.online_order_parameters(results),
        ),
        Picture(f"{name}deviation", "Distance from the equation.", theory_plots.online_deviation(results)),
    ]


def deviations(results: xr.Dataset) -> dict[int, tuple[float, float]]:
    """For every d the root mean square, over time and pairs, of R's deviation: of single students, of their mean."""
    difference = results.simulated_cross - results.cross
    found = {}
    for d in results.inputs.values:
        one = difference.sel(inputs=d)
        found[int(d)] = float(np.sqrt((one**2).mean())), float(np.sqrt((one.mean("seed") ** 2).mean()))
    return found


def _deviations(results: xr.Dataset) -> Table:
    rows = [[str(d), f"{single:.2e}", f"{mean:.2e}"] for d, (single, mean) in deviations(results).items()]
    return Table(
        "Deviation of R from the equation, root mean square", ("d", "single students", "mean of students"), rows
    )


def _milestones(results: xr.Dataset) -> Table:
    """Losses and alignment at some times, by the equation and simulated at the largest d."""
    last = results.sel(inputs=results.inputs.max())
    size = np.sqrt(np.stack([np.diagonal(q) for q in results.student.values]))  # [time, n]
    cosine = (
        np.abs(results.cross.values / size[:, None, :]).max(2).mean(1)
    )  # of a teacher node with its best student node
    rows = []
    for i in np.unique(np.linspace(0, len(results.time) - 1, 7).round().astype(int)):
        loss = last.simulated_loss.isel(time=i)
        rows.append([
            f"{float(results.time[i]):g}", f"{float(results.loss[i]):.3e}",
            f"{float(loss.mean()):.3e} ± {float(loss.std()):.1e}", f"{cosine[i]:.3f}",
        ])  # fmt: skip
    columns = ("steps / d", "loss, equation", f"loss, d = {int(last.inputs)}", "alignment, equation")
    title = "Losses, mean ± sd over students; alignment is the mean best cosine of teacher nodes"
    return Table(title, columns, rows)
