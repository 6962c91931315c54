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
            f"A teacher with hidden layers {nodes}, {config['inputs']} inputs and {config['outputs']} outputs"
            f"{', every hidden node active on half of the inputs' if config['teacher'] == 'tuned' else ''}. "
            f"Students learned from N distinct samples, {processed:,} samples processed whatever N: Gaussian ones of "
            f"standard deviation {config['data_std']:g}, or points on and beside the boundaries of the teacher's "
            f"lowest layer. All are measured at the end, on {config['evaluation_samples']:,} held-out Gaussian inputs. "
            "The layer score is the mean over teacher nodes of the largest correlation with a student node."
        ),
        needed_table(results, threshold),
        *(_table(results, kind, config) for kind in results.kind.values),
        Picture(
            f"{name}scores",
            "Layer score at the end against the number of distinct samples; mean and range over seeds, the dashed line "
            f"at {threshold:g}.",
            scores_by_samples(results, threshold),
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


def samples_needed(results: xr.Dataset, threshold: float) -> xr.DataArray:
    """Distinct samples from which on the layer score at the end is at least a threshold, [kind, multi, seed, layer].

    Between two numbers of samples the score is taken to be linear in the logarithm of the number. NaN where even the
    largest number does not suffice; the smallest number where all do.
    """
    ordered = results.layer_score.sortby("samples").transpose("kind", "multi", "seed", "layer", "samples")
    counts, scores = ordered.samples.values, ordered.values
    enough = scores >= threshold
    first = enough.shape[-1] - np.logical_and.accumulate(enough[..., ::-1], axis=-1).sum(-1)
    above = np.minimum(first, len(counts) - 1)[..., None]
    below = np.maximum(above - 1, 0)
    high, low = (np.take_along_axis(scores, at, -1)[..., 0] for at in (above, below))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where((first == 0) | np.isnan(low), 1.0, (threshold - low) / (high - low))
    logs = np.log(counts)
    needed = np.exp(logs[below[..., 0]] * (1 - share) + logs[above[..., 0]] * share)
    needed[first == len(counts)] = np.nan
    return ordered.isel(samples=0, drop=True).copy(data=needed).rename("samples_needed")


def needed_table(results: xr.Dataset, threshold: float) -> Table:
    """Samples from which on the layer score is at least a threshold: median and range over seeds."""
    needed = samples_needed(results, threshold)
    rows = []
    for kind in results.kind.values:
        for multi in results.multi.values:
            cells = [spread(needed.sel(kind=kind, multi=multi, layer=layer).values) for layer in needed.layer.values]
            rows.append([KINDS[kind], f"{multi}×", *cells])
    title = f"Distinct samples from which on the layer score is {threshold:g} or more, median and range over seeds"
    columns = ("samples", "width", *(f"layer {layer}" for layer in results.layer.values))
    return Table(title, columns, rows)


def spread(values: np.ndarray) -> str:
    """Median and range; values that are not known count as larger than all others."""
    known, unknown = np.sort(values[np.isfinite(values)]), int((~np.isfinite(values)).sum())
    if not known.size:
        return "never"
    every = np.concatenate([known, np.full(unknown, np.inf)])
    middle = float(np.median(every))
    text = f"{middle:.0f}" if np.isfinite(middle) else "–"
    ends = " … ".join(dict.fromkeys((f"{known[0]:.0f}", f"{known[-1]:.0f}")))
    return f"{text} ({ends}" + (f", never {unknown} of {len(every)})" if unknown else ")")


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
