"""The report of a two-layer run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastspec import dynamics_plots, plots
from fastspec.figures import at, early_step
from fastspec.report import Block, Heading, Picture, Table, Text, percent

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


def two_layer_blocks(results: xr.Dataset, config: Mapping[str, Any], name: str = "") -> list[Block]:
    """The report of a two-layer run; `name` goes before the names of its figures."""
    blocks: list[Block] = [Heading("Gaussian data: two-layer students of two-layer teachers")]
    students = results.sizes["seed"] * results.sizes["multi"]
    blocks.append(
        Text(
            f"{students} students learned each teacher in one population, by {config['steps']:,} steps of SGD at "
            f"learning rate {config['lr']:g} and batches of {config['batch_size']}. A teacher node is covered when the "
            f"correlation of a student node with it, over {config['evaluation_samples']:,} held-out samples, is above "
            f"{config['threshold']:g}. The fan-out of teacher node i, from 0, is divided by (i + 1) to the "
            "power of the strength decay. The loss is the mean over held-out samples of ½‖teacher − student‖², in the "
            "table its geometric mean over seeds."
        )
    )
    diverged = int((results.diverged_step >= 0).sum())
    if diverged:
        blocks.append(Text(f"{diverged} students diverged; they stopped there and keep their last finite weights."))
    for m in results.teacher_nodes.values:
        picked = results.sel(teacher_nodes=m).isel(teacher=slice(0, int(m)))
        blocks.append(_coverage_table(picked, int(m), config["threshold"]))
        blocks += [
            Picture(f"{name}m{m}-{kind}", *drawn) for kind, drawn in figures(picked, config["threshold"]).items()
        ]
    return blocks


def figures(results: xr.Dataset, threshold: float) -> dict[str, tuple[str, Figure]]:
    """Captions and figures for one value of teacher_nodes."""
    decay = float(min(results.strength_decay.values, key=lambda p: abs(p - 1)))  # of what is shown for one alone
    drawn = {
        "coverage": (
            "Share of teacher nodes covered while students learn, mean over seeds.",
            plots.coverage_curves(results, threshold),
        ),
        "success-rate": (
            "Success rate: the share of seeds that cover each teacher node, early and at the end.",
            plots.success_rate(results, threshold),
        ),
        "l-shape": (
            "Student nodes of all seeds at the end; blue ones cover a teacher node. The figure is an L where "
            "all others have little fan-out.",
            plots.l_shape(results, threshold),
        ),
        "loss": (
            "Loss on held-out samples: mean and standard deviation over seeds, of its logarithm.",
            plots.loss_curves(results),
        ),
        "luck": (
            "Luck: the share of student nodes that, at an earlier time, correlate better with a teacher node than the "
            "one that covers it at the end. Mean and quartiles over seeds and covered teacher nodes; half is chance.",
            dynamics_plots.ranks_of_winners(results, threshold),
        ),
        "students": (
            f"How many student nodes are nearest to each teacher node, mean over seeds. {_attraction(results, decay)}",
            dynamics_plots.students_per_teacher(results, threshold),
        ),
        "gradient": (
            "Per-sample gradient g₁(x) of the hidden layer's pre-activations against alignment: a point for each "
            "teacher node, student, and time at which gradients were measured.",
            dynamics_plots.gradient_alignment(results),
        ),
    }
    if results.sizes["followed"]:
        drawn["trajectories"] = (
            f"Every node of the students of seed 0, strength decay {decay:g}.",
            dynamics_plots.trajectories(results, decay, threshold),
        )
    return drawn


def _attraction(results: xr.Dataset, decay: float) -> str:
    """How much of the widest students teacher node 0 attracts, and keeps."""
    multi = int(results.multi.max())
    one = results.students.sel(strength_decay=decay, multi=multi, level=0.0)
    share = (one.sel(teacher=0) / one.isel(step=0).sum("teacher")).mean("seed")
    step, most, last = int(share.idxmax("step")), percent(float(share.max())), percent(float(share[-1]))
    return (
        f"With decay {decay:g}, teacher node 0 is the nearest of {most} of the {multi}× students' nodes after "
        f"{at(results, step)}, and of {last} at the end."
    )


def _coverage_table(results: xr.Dataset, m: int, threshold: float) -> Table:
    covered = (results.best_correlation > threshold).sum("teacher")  # [decay, multi, seed, step]
    early = early_step(results, 0.05)
    rows = []
    for decay in results.strength_decay.values:
        for multi in results.multi.values:
            counts = covered.sel(strength_decay=decay, multi=multi)
            final = counts.isel(step=-1)
            loss = results.loss.sel(strength_decay=decay, multi=multi).isel(step=-1)
            rows.append(
                [
                    f"{decay:g}",
                    f"{multi}×",
                    f"{float(counts.sel(step=early).mean()):.1f}",
                    f"{float(final.mean()):.1f}",
                    f"{int((final == m).sum())} of {final.size} seeds",
                    f"{10 ** float(np.log10(loss).mean()):.1e}",
                ]
            )
    columns = ("decay", "student", f"after {at(results, early)}", "at the end", "all covered in", "loss")
    title = f"Teacher nodes covered above {threshold:g} (of {m}), mean over seeds; loss at the end"
    return Table(title, columns, rows)
