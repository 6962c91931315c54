"""The report of an ablation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastspec.ablation_plots import FACTORS, changed_scores, scores_by_epoch, shown, slices
from fastspec.report import Block, Heading, Picture, Table, Text

if TYPE_CHECKING:
    import xarray as xr

THRESHOLD = 0.95


def ablation_blocks(results: xr.Dataset, config: Mapping[str, Any], name: str = "") -> list[Block]:
    """The report of an ablation; `name` goes before the names of its figures."""
    nodes = "-".join(map(str, config["hidden"]))
    base = ", ".join(f"{what} {shown(factor, results[factor].isel(cell=0).item())}" for factor, what in FACTORS.items())
    blocks: list[Block] = [
        Heading("Ablation of deep students"),
        Text(
            f"Teachers with hidden layers {nodes} and {config['inputs']} Gaussian inputs; {config['epochs']} epochs of "
            f"{config['samples']:,} samples, so that students with smaller batches make more steps; measured on "
            f"{config['evaluation_samples']:,} held-out inputs. The base: {base}. Each table and figure changes one of "
            "these and leaves the others. The layer score is the mean over teacher nodes of the largest correlation "
            f"with a student node; a node is covered above {THRESHOLD:g}; the difference is the squared one, averaged "
            "over held-out samples and outputs."
        ),
    ]
    tables: list[Block] = []
    alone = {0}  # cells that are in a table of a factor
    for factor, what in FACTORS.items():
        found = slices(results, factor)
        if len(found) > 1:
            alone |= {int(cell.cell) for _, cell in found}
            title = f"{what.capitalize()}: the end, {_seeds(len(results.seed))}"
            tables.append(_table(title, (what,), [((label,), cell) for label, cell in found]))
            caption = f"1 − layer score after every epoch, by {what}; mean and range over seeds."
            tables.append(Picture(f"{name}{factor.replace('_', '-')}", caption, scores_by_epoch(results, factor)))
    if len(alone) > 2:
        caption = (
            "What each change of the base changes: the layer score at the end less that of the base, seeds (dots) "
        )
        blocks.append(Picture(f"{name}changes", caption + "and their mean (bars).", changed_scores(results)))
    blocks += tables
    if len(alone) < len(results.cell):
        every = [results.isel(cell=i) for i in range(len(results.cell))]
        labelled = [(tuple(shown(factor, cell[factor].item()) for factor in FACTORS), cell) for cell in every]
        blocks.append(_table("All cells at the end", tuple(FACTORS.values()), labelled, summary=False))
    return blocks


def _table(
    title: str, columns: tuple[str, ...], cells: list[tuple[tuple[str, ...], xr.Dataset]], *, summary: bool = True
) -> Table:
    """Layer scores, coverage and squared differences at the end, a row for each cell."""
    layers = cells[0][1].layer.values
    diverged = any((cell.diverged_step >= 0).any() for _, cell in cells)
    rows = []
    for labels, cell in cells:
        final = cell.isel(epoch=-1)
        scores = [_mean(final.layer_score.sel(layer=layer).values, "{:.4f}") for layer in layers]
        best = final.best_correlation.values
        known = best[np.isfinite(best)]
        covered = f"{100 * (known > THRESHOLD).mean():.0f}%" if known.size else "–"
        difference = _mean(2 / int(cell.outputs) * final.loss.values, "{:.1e}")
        rows.append([*labels, *scores, covered, difference])
        if diverged:
            rows[-1].append(str(int((cell.diverged_step >= 0).sum())))
    named = (*columns, *(f"layer {layer}" for layer in layers), "covered", "difference", *["diverged"] * diverged)
    return Table(title, named, rows, summary)


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"mean ± standard deviation over {count} seeds"


def _mean(values: np.ndarray, form: str) -> str:
    """The mean, and the standard deviation of several values."""
    values = values[np.isfinite(values)]
    if not values.size:
        return "–"
    mean = form.format(values.mean())
    return mean if values.size == 1 else f"{mean} ± {form.format(values.std(ddof=1))}"
