"""The page of the study, as blocks of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from fastspec.ablation_plots import FACTORS, changes, shown
from fastspec.ablation_report import ablation_blocks
from fastspec.experiments.results import RunFolder
from fastspec.report import Block, Heading, Table, Text
from studies.ablation import text
from studies.ablation.claims import CLAIMS, final
from studies.files import made_with

ONE = "--outputs 100 --multi 5 --batch-size 64"
PARTS = {
    "single": "fastspec ablation",
    "pace": "fastspec ablation --teacher tuned --outputs 100 --data-std 10 --batch-norm none --multi "
    "5 1 2 10 --batch-size 64 16 256 --lr 0.1 0.3 --every-combination",
    "norm": f"fastspec ablation {ONE} --teacher tuned --data-std 10 --batch-norm none before after "
    "--lr 0.3 1.0 --every-combination",
    "inputs": f"fastspec ablation {ONE} --batch-norm none --teacher tuned separated --data-std 10 1 "
    "--lr 0.1 0.3 1.0 --every-combination",
    "rates": f"fastspec ablation {ONE} --batch-norm none --teacher separated --data-std 1 --lr 3.0 10.0 30.0",
}


def page(folders: Mapping[str, Sequence[RunFolder]], results: Mapping[str, xr.Dataset]) -> list[Block]:
    """All of it, from the runs by part."""
    config = folders["single"][0].config
    hidden = "-".join(map(str, config["hidden"]))
    blocks: list[Block] = [
        Text(text.QUESTION.format(hidden=hidden, inputs=config["inputs"])),
        Heading("Answer"),
        Text(text.answer(results["single"])),
        changes_table(results["single"]),
        Heading("What the authors say"),
        Text(text.CLAIMED),
        Table(
            "Claims about the layer score at the end",
            ("claim", "better", "worse", "difference, range over seeds", "seeds", ""),
            [claim.row(results[claim.part]) for claim in CLAIMS],
        ),
        Heading("Width, batch size and learning rate"),
        Text(text.pace(results["pace"])),
        pace_table(results["pace"]),
        Heading("Batch norm and learning rate"),
        Text(text.norm(results["single"], results["norm"])),
        pair_table(results["norm"], "batch_norm", "lr"),
        Heading("Inputs, teachers and learning rate"),
        Text(text.inputs(results["inputs"], results["rates"])),
        *(pair_table(results["inputs"], "data_std", "lr", teacher=kind) for kind in ("tuned", "separated")),
        pair_table(results["rates"], "data_std", "lr", teacher="separated"),
        Heading("One change at a time"),
        *ablation_blocks(results["single"], config)[1:],
        Heading("Not tested"),
        Text(text.NOT_TESTED.format(epochs=config["epochs"])),
        Heading("How it was made"),
        Text("Several runs of one command differ in `--teacher-seed`, which counts from 0."),
    ]
    for name, several in folders.items():
        blocks += made_with(several, PARTS[name])
    return blocks


def changes_table(results: xr.Dataset) -> Table:
    """Every change of the base, the largest first: mean over layers of the change of the layer score."""
    rows = []
    for what, value, change in changes(results):
        of_seeds = change.mean("layer").values
        rows.append((float(of_seeds.mean()), [f"{what} {value}", *_spread(of_seeds)]))
    rows.sort(key=lambda row: -abs(row[0]))
    columns = ("change of the base", "layer score", "range over seeds", "seeds with more")
    return Table("What each change of the base changes, mean over layers", columns, [row for _, row in rows])


def _spread(values: np.ndarray) -> list[str]:
    known = values[np.isfinite(values)]
    return [
        f"{known.mean():+.3f}", f"{known.min():+.3f} … {known.max():+.3f}", f"{int((known > 0).sum())} of {len(values)}"
    ]  # fmt: skip


def pace_table(results: xr.Dataset) -> Table:
    """Layer score at the end of every width, by learning rate per sample; mean over seeds."""
    settings = sorted(
        {
            (float(lr) / int(size), int(size), float(lr))
            for size in results.batch_size.values
            for lr in results.lr.values
        }
    )
    rows = []
    for multi in sorted({int(m) for m in results.multi.values}):
        found = [float(final(results, multi=multi, batch_size=size, lr=lr).mean()) for _, size, lr in settings]
        rows.append([f"{multi}×", *(f"{score:.3f}" for score in found)])
    columns = ("width", *(f"{size}, {lr:g}" for _, size, lr in settings))
    return Table(
        "Layer score at the end, mean over layers and seeds, by batch size and learning rate; learning rate per "
        "sample grows to the right",
        columns,
        rows,
    )


def pair_table(results: xr.Dataset, down: str, across: str, **fixed: str) -> Table:
    """Layer score at the end, mean over layers: mean and range over seeds, one factor down and one across."""
    columns = list(dict.fromkeys(results[across].values.tolist()))
    rows = []
    for value in dict.fromkeys(results[down].values.tolist()):
        cells = [final(results, **{down: value, across: other}, **fixed).values for other in columns]
        rows.append([shown(down, value), *(_range(cell) for cell in cells)])
    where = "".join(f", {FACTORS[name]} {value}" for name, value in fixed.items())
    title = f"Layer score at the end, mean over layers: mean and range over seeds{where}"
    return Table(title, (FACTORS[down], *(f"{FACTORS[across]} {shown(across, other)}" for other in columns)), rows)


def _range(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ({values.min():.3f} … {values.max():.3f})"


def kept(results: xr.Dataset) -> xr.Dataset:
    """The arrays that the summary keeps: layer scores and losses of every epoch, nodes of the end."""
    last = results.best_correlation.isel(epoch=-1, drop=True)
    return results.drop_vars("best_correlation").assign(final_best_correlation=last)
