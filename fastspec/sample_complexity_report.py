"""The report of a sample-complexity run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastspec.report import Block, Heading, Picture, Table, Text
from fastspec.sample_complexity_plots import KINDS, coverage_by_samples, losses_by_samples, scores_by_samples

if TYPE_CHECKING:
    import xarray as xr


def sample_complexity_blocks(results: xr.Dataset, config: Mapping[str, Any], name: str = "") -> list[Block]:
    """The report of a sample-complexity run; `name` goes before the names of its figures."""
    nodes, threshold = "-".join(map(str, config["hidden"])), config["threshold"]
    processed = config["steps"] * config["batch_size"]
    return [
        Heading("Sample complexity of students"),
        Text(
            f"A teacher with hidden layers {nodes}, {config['inputs']} inputs and {config['outputs']} outputs. "
            f"Students learned from N distinct samples, {processed:,} samples processed whatever N: Gaussian ones of "
            f"standard deviation {config['data_std']:g}, or points on and beside the boundaries of the teacher's "
            f"lowest layer. All are measured at the end, on {config['evaluation_samples']:,} held-out Gaussian inputs. "
            "The layer score is the mean over teacher nodes of the largest correlation with a student node."
        ),
        *(_table(results, kind, config) for kind in results.kind.values),
        Picture(
            f"{name}scores",
            "Layer score at the end against the number of distinct samples; mean and range over seeds.",
            scores_by_samples(results),
        ),
        Picture(
            f"{name}coverage",
            f"Share of teacher nodes with a student node above {threshold:g} at the end; mean and range over seeds.",
            coverage_by_samples(results, threshold),
        ),
        Picture(
            f"{name}losses",
            "Squared difference of teacher and student at the end, averaged over held-out samples and outputs.",
            losses_by_samples(results, config["outputs"]),
        ),
    ]


def _table(results: xr.Dataset, kind: str, config: Mapping[str, Any]) -> Table:
    """For each number of samples and width: layer score and coverage of every layer, and the difference."""
    rows = []
    for samples in results.samples.values:
        for multi in results.multi.values:
            one = results.sel(kind=kind, samples=samples, multi=multi)
            cells = []
            for layer in results.layer.values:
                best = one.best_correlation.sel(layer=layer).values
                known = best[np.isfinite(best)]
                if known.size:
                    score, covered = float(one.layer_score.sel(layer=layer).mean()), known > config["threshold"]
                    cells.append(f"{score:.3f} ({100 * covered.mean():.0f}%)")
                else:
                    cells.append("–")
            loss = one.loss.values[np.isfinite(one.loss.values)]
            difference = f"{2 / config['outputs'] * loss.mean():.1e}" if loss.size else "–"
            stopped = int((one.diverged_step >= 0).sum())
            rows.append([f"{samples:,}", f"{multi}×", *cells, difference, str(stopped or "none")])
    columns = ("samples", "width", *(f"layer {layer}" for layer in results.layer.values), "difference", "diverged")
    return Table(f"{KINDS[kind]}: layer score (teacher nodes covered) at the end".capitalize(), columns, rows)
