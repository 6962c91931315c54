"""The report of a digits run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastspec import plots
from fastspec.report import Block, Heading, Picture, Table, Text, percent
from fastspec.statistics import THRESHOLDS

if TYPE_CHECKING:
    import xarray as xr


def digits_blocks(results: xr.Dataset, config: Mapping[str, Any], name: str = "") -> list[Block]:
    """The report of a digits run; `name` goes before the names of its figures."""
    accuracy, training = (float(results[f"teacher_accuracy_{part}"]) for part in ("held_out", "train"))
    nodes = "-".join(str(width) for width in config["hidden"])
    return [
        Heading("Real data: students of a teacher of handwritten digits"),
        Text(
            f"The teacher ({nodes} hidden nodes) learned scikit-learn's digits from their labels: {percent(accuracy)} "
            f"right on the {percent(config['held_out'])} of the images that were held out, "
            f"{percent(training)} on the others. The students saw no label: they learned the teacher's logits, for "
            f"{config['student_steps']:,} steps, at training images with Gaussian noise of "
            f"{config['student_noise']:g} standard deviations of the pixels. Everything here is measured on "
            "held-out images without noise."
        ),
        accuracy_table(results, accuracy),
        layer_table(results, config["hidden"]),
        *pictures(results, name),
        *(node_table(results, *layer) for layer in enumerate(config["hidden"], start=1)),
    ]


def pictures(results: xr.Dataset, name: str) -> list[Block]:
    """Layer scores by step and matches at the end; `name` goes before their names."""
    return [
        Picture(
            f"{name}layer-scores",
            "Layer score while students learn: the mean of the best correlation over the teacher nodes that vary.",
            plots.layer_scores(results),
        ),
        Picture(
            f"{name}matches",
            "Best correlation of every teacher node that varies, best first; the dashed line is at 0.95.",
            plots.sorted_matches(results),
        ),
    ]


def accuracy_table(results: xr.Dataset, teacher: float) -> Table:
    """Shares of held-out images that teacher and students answer rightly, mean over seeds."""
    final = results.isel(step=-1).mean("seed")
    rows = [["teacher", percent(teacher), "–", "–"]]
    for multi in results.multi.values:
        row = final.sel(multi=multi)
        if row.loss.isnull():
            rows.append([f"student {multi}×", "diverged", "–", "–"])
            continue
        shares = [percent(float(row[name])) for name in ("accuracy", "agreement")]
        rows.append([f"student {multi}×", *shares, f"{float(row.loss):.3f}"])
    return Table("Held-out images", ("network", "right digit", "teacher's digit", "loss"), rows)


def layer_table(results: xr.Dataset, hidden: Sequence[int]) -> Table:
    """Layer scores and coverage at the end; `hidden`: nodes of the teacher's hidden layers."""
    final = results.isel(step=-1)
    rows = []
    for layer, nodes in enumerate(hidden, start=1):
        constant = max(0, int(final.constant_teachers.sel(layer=layer).max()))
        for multi in results.multi.values:
            one = final.sel(layer=layer, multi=multi)
            shares = [float((one.best_correlation > t).sum("teacher").mean()) / nodes for t in THRESHOLDS]
            cells = [_score(one), *(f"{100 * share:.0f}%" for share in shares)]
            rows.append([str(layer), f"{multi}×", *cells, f"{nodes - constant}/{nodes}"])
    columns = ("layer", "student", "score", *(f">{threshold:g}" for threshold in THRESHOLDS), "varying")
    title = "Hidden layers: layer score, teacher nodes covered, teacher nodes that vary"
    return Table(title, columns, rows)


def _score(final: xr.Dataset) -> str:
    """The layer score of one layer of students, mean over seeds, or why there is none."""
    if final.layer_score.notnull().any():
        return f"{float(final.layer_score.mean()):.3f}"
    return "–" if final.loss.isnull().all() else "no node varies"


def node_table(results: xr.Dataset, layer: int, nodes: int) -> Table:
    """The best student node of every teacher node of one layer, at the end."""
    final = results.isel(step=-1, seed=0).sel(layer=layer)
    rows = []
    for j in range(nodes):
        cells = []
        for multi in results.multi.values:
            one = final.sel(multi=multi, teacher=j)
            known = int(one.best_student) >= 0
            cells.append(f"{int(one.best_student)} ({float(one.best_correlation):.3f})" if known else "–")
        rows.append([str(j), *cells])
    columns = ("teacher node", *(f"student {multi}×" for multi in results.multi.values))
    title = f"Hidden layer {layer}: best student node and its correlation, seed 0 (–: the teacher node is constant)"
    return Table(title, columns, rows, summary=False)
