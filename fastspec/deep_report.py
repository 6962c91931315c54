"""The report of a deep run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastspec import deep_plots
from fastspec.deep_plots import kinds
from fastspec.report import Block, Heading, Picture, Table, Text

if TYPE_CHECKING:
    import xarray as xr

THRESHOLD = 0.95
RARE = 0.05  # share of inputs below which a node is rarely active, or rarely not


def deep_blocks(results: xr.Dataset, config: Mapping[str, Any], name: str = "") -> list[Block]:
    """The report of a deep run; `name` goes before the names of its figures."""
    nodes = "-".join(map(str, config["hidden"]))
    drop = f", times {config['lr_drop']:g} from epoch {config['lr_drop_epoch']}" if config["lr_drop_epoch"] else ""
    return [
        Heading("Deep students of a separated teacher"),
        Text(
            f"A teacher with hidden layers {nodes}, {config['inputs']} inputs of standard deviation "
            f"{config['data_std']:g} and {config['outputs']} outputs; {config['steps']:,} SGD steps of "
            f"{config['batch_size']} samples at a learning rate of {config['lr']:g}{drop}, on the squared difference "
            f"averaged over samples and outputs. Measured on {config['evaluation_samples']:,} held-out inputs."
        ),
        score_table(results, config["outputs"]),
        observed_table(results),
        coverage_table(results),
        Picture(
            f"{name}scores",
            "1 − layer score while students learn: the layer score is the mean over teacher nodes of the largest "
            "correlation with a student node.",
            deep_plots.scores(results),
        ),
        Picture(
            f"{name}losses",
            "Squared difference of teacher and student, averaged over samples and outputs.",
            deep_plots.losses(results, config["outputs"]),
        ),
        Picture(
            f"{name}ranks",
            "How early the final winners were ahead: the share of student nodes that correlate better with a teacher "
            "node than the one that wins at the end; mean over teacher nodes.",
            deep_plots.ranks(results),
        ),
        Picture(
            f"{name}matches",
            f"Best correlation of every teacher node at the end, best first; the dashed line is at {THRESHOLD:g}.",
            deep_plots.matches(results, THRESHOLD),
        ),
        Picture(
            f"{name}blocks",
            "Norms of the blocks of E[β] and E[H] of a layer: among the student nodes that win a teacher node at the "
            f"end, between them and the others, and among the others; first seed, {kinds(results)[-1][0]} students.",
            deep_plots.blocks(results),
        ),
        Picture(
            f"{name}l-shape",
            "Strength of every student node, the root mean square of what a unit of its activation adds to the "
            f"outputs, against its largest correlation; {kinds(results)[-1][0]} students.",
            deep_plots.deep_l_shape(results, THRESHOLD),
        ),
    ]


def score_table(results: xr.Dataset, outputs: int) -> Table:
    """Layer scores and losses at the end, mean over seeds, and the standard deviation where there are several."""
    final = results.isel(step=-1)
    rows = []
    for label, chosen in kinds(results):
        one = final.sel(chosen)
        stopped = int((one.diverged_step >= 0).sum())
        scores = [_spread(one.layer_score.sel(layer=layer).values, "{:.4f}") for layer in results.layer.values]
        losses = [_spread(2 / outputs * one[name].values, "{:.2e}") for name in ("loss", "loss_train")]
        rows.append([label, *scores, *losses, str(stopped) if stopped else "none"])
    layers = [f"layer {layer}" for layer in results.layer.values]
    columns = ("students", *layers, "held-out difference", "in training", "diverged")
    return Table(f"Layer scores and squared differences at the end, {len(results.seed)} seeds", columns, rows)


def observed_table(results: xr.Dataset) -> Table:
    """Layer scores at the end over the teacher nodes that switch often enough, mean over seeds, and their numbers."""
    final, activity = results.best_correlation.isel(step=-1), results.teacher_activity
    often = (activity > RARE) & (activity < 1 - RARE)
    rows = []
    for label, chosen in kinds(results):
        scores = final.sel(chosen).where(often).mean(["seed", "teacher"])
        rows.append([label, *(f"{float(score):.4f}" for score in scores)])
    every = [dim for dim in often.dims if dim != "layer"]  # runs that are joined have a teacher for each seed
    numbers = [f"{int(n)} of {int(m)}" for n, m in zip(often.sum(every), activity.count(every), strict=True)]
    columns = ("students", *(f"layer {layer}" for layer in results.layer.values))
    title = (
        f"Layer scores at the end, of teacher nodes active on {100 * RARE:g} to {100 - 100 * RARE:g} % of the inputs"
    )
    return Table(title, columns, [*rows, ["such teacher nodes", *numbers]])


def coverage_table(results: xr.Dataset) -> Table:
    """The share of teacher nodes that some student node covers at the end."""
    final = results.best_correlation.isel(step=-1)
    rows = []
    for label, chosen in kinds(results):
        cells = []
        for layer in results.layer.values:
            values = final.sel(**chosen, layer=layer).values
            known = values[np.isfinite(values)]
            cells.append(f"{100 * (known > THRESHOLD).mean():.0f}%" if known.size else "–")
        rows.append([label, *cells])
    columns = ("students", *(f"layer {layer}" for layer in results.layer.values))
    return Table(f"Teacher nodes with a student node above {THRESHOLD:g} at the end", columns, rows)


def _spread(values: np.ndarray, form: str) -> str:
    values = values[np.isfinite(values)]
    if not values.size:
        return "–"
    text = form.format(values.mean())
    return f"{text} ± {values.std(ddof=1):.1e}" if len(values) > 1 else text
