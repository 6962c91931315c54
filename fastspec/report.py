"""Reports of runs: what was found, in tables and figures, as Markdown and as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastspec import plots
from fastspec.atomic_files import write_atomically
from fastspec.statistics import THRESHOLDS

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    summary: bool = True  # shown at the end of a run as well, and open on the page


@dataclass(frozen=True)
class Picture:
    name: str
    caption: str
    figure: Figure


Block = Heading | Text | Table | Picture


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
        picked, stem = results.sel(teacher_nodes=m).isel(teacher=slice(0, int(m))), f"{name}m{m}-"
        blocks += [
            _coverage_table(picked, int(m), config["threshold"]),
            Picture(
                f"{stem}coverage",
                "Share of teacher nodes covered while students learn, mean over seeds.",
                plots.coverage_curves(picked, config["threshold"]),
            ),
            Picture(
                f"{stem}success-rate",
                "Success rate: the share of seeds that cover each teacher node, early and at the end.",
                plots.success_rate(picked, config["threshold"]),
            ),
            Picture(
                f"{stem}l-shape",
                "Student nodes of all seeds at the end; blue ones cover a teacher node. The figure is an L where "
                "all others have little fan-out.",
                plots.l_shape(picked, config["threshold"]),
            ),
            Picture(
                f"{stem}loss",
                "Loss on held-out samples: mean and standard deviation over seeds, of its logarithm.",
                plots.loss_curves(picked),
            ),
        ]
    return blocks


def digits_blocks(results: xr.Dataset, config: Mapping[str, Any], name: str = "") -> list[Block]:
    """The report of a digits run; `name` goes before the names of its figures."""
    accuracy, training = (float(results[f"teacher_accuracy_{part}"]) for part in ("held_out", "train"))
    nodes = "-".join(str(width) for width in config["hidden"])
    return [
        Heading("Real data: students of a teacher of handwritten digits"),
        Text(
            f"The teacher ({nodes} hidden nodes) learned scikit-learn's digits from their labels: {_percent(accuracy)} "
            f"right on the {_percent(config['held_out'])} of the images that were held out, "
            f"{_percent(training)} on the others. The students saw no label: they learned the teacher's logits, for "
            f"{config['student_steps']:,} steps, at training images with Gaussian noise of "
            f"{config['student_noise']:g} standard deviations of the pixels. Everything here is measured on "
            "held-out images without noise."
        ),
        _accuracy_table(results, accuracy),
        _layer_table(results, config["hidden"]),
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
        *(_node_table(results, *layer) for layer in enumerate(config["hidden"], start=1)),
    ]


def provenance_table(provenance: Mapping[str, Any]) -> Table:
    """Where a run comes from."""
    rows = [[key, "unknown" if value is None else str(value)] for key, value in provenance.items()]
    return Table("Made with", ("what", "value"), rows, summary=False)


def write_report(folder: str | os.PathLike, title: str, blocks: Iterable[Block]) -> None:
    """Write figures/*.png, report.md and report.html into `folder`."""
    root, blocks = Path(folder), list(blocks)
    (root / "figures").mkdir(exist_ok=True)
    for block in blocks:
        if isinstance(block, Picture):
            path = root / "figures" / f"{block.name}.png"
            write_atomically(path, partial(block.figure.savefig, format="png", dpi=160))
    for name, text in (("report.md", _markdown(title, blocks)), ("report.html", _html(title, blocks, root))):
        write_atomically(root / name, partial(Path.write_text, data=text, encoding="utf-8"))


def _coverage_table(results: xr.Dataset, m: int, threshold: float) -> Table:
    covered = (results.best_correlation > threshold).sum("teacher")  # [decay, multi, seed, step]
    early = plots.early_step(results, 0.05)
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
    columns = ("decay", "student", f"after {early:,} steps", "at the end", "all covered in", "loss")
    title = f"Teacher nodes covered above {threshold:g} (of {m}), mean over seeds; loss at the end"
    return Table(title, columns, rows)


def _accuracy_table(results: xr.Dataset, teacher: float) -> Table:
    final = results.isel(step=-1).mean("seed")
    rows = [["teacher", _percent(teacher), "–", "–"]]
    for multi in results.multi.values:
        row = final.sel(multi=multi)
        shares = [_percent(float(row[name])) for name in ("accuracy", "agreement")]
        rows.append([f"student {multi}×", *shares, f"{float(row.loss):.3f}"])
    return Table("Held-out images", ("network", "right digit", "teacher's digit", "loss"), rows)


def _layer_table(results: xr.Dataset, hidden: Sequence[int]) -> Table:
    final = results.isel(step=-1)
    rows = []
    for layer, nodes in enumerate(hidden, start=1):
        constant = int(final.constant_teachers.isel(multi=0, seed=0).sel(layer=layer))
        for multi in results.multi.values:
            one = final.sel(layer=layer, multi=multi)
            shares = [float((one.best_correlation > t).sum("teacher").mean()) / nodes for t in THRESHOLDS]
            cells = [f"{float(one.layer_score.mean()):.3f}", *(f"{100 * share:.0f}%" for share in shares)]
            rows.append([str(layer), f"{multi}×", *cells, f"{nodes - constant}/{nodes}"])
    columns = ("layer", "student", "score", *(f">{threshold:g}" for threshold in THRESHOLDS), "varying")
    title = "Hidden layers: layer score, teacher nodes covered, teacher nodes that vary"
    return Table(title, columns, rows)


def _node_table(results: xr.Dataset, layer: int, nodes: int) -> Table:
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


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _markdown(title: str, blocks: Iterable[Block]) -> str:
    parts = [f"# {title}"]
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"## {block.text}")
        elif isinstance(block, Text):
            parts.append(block.text)
        elif isinstance(block, Picture):
            parts.append(f"![{block.caption}](figures/{block.name}.png)\n\n*{block.caption}*")
        else:
            rows = [block.columns, ["---"] * len(block.columns), *block.rows]
            parts.append(f"**{block.title}**\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join(parts) + "\n"


CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #202020; max-width: 62em; margin: 2em auto; padding: 0 1em; }
h2 { margin-top: 2em; }
img { max-width: 100%; }
figure { margin: 1.5em 0; }
figcaption, caption { color: #505050; text-align: left; padding-bottom: .3em; }
table { border-collapse: collapse; margin: 1.5em 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2em .9em .2em 0; text-align: right; border-bottom: 1px solid #e4e4e4; }
th:first-child, td:first-child { text-align: left; }
"""


def _html(title: str, blocks: Iterable[Block], root: Path) -> str:
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"<h2>{html.escape(block.text)}</h2>")
        elif isinstance(block, Text):
            parts.append(f"<p>{html.escape(block.text)}</p>")
        elif isinstance(block, Picture):
            data = base64.b64encode((root / "figures" / f"{block.name}.png").read_bytes()).decode()
            caption = html.escape(block.caption)
            image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
            parts.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
        else:
            inner = "\n".join(_row("td" if i else "th", row) for i, row in enumerate((block.columns, *block.rows)))
            name = html.escape(block.title)
            if block.summary:
                parts.append(f"<table><caption>{name}</caption>\n{inner}</table>")
            else:
                parts.append(f"<details><summary>{name}</summary><table>\n{inner}</table></details>")
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{CSS}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _row(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
