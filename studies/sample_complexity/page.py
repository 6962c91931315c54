"""The page of the study, as blocks of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import xarray as xr

from fastspec.experiments.results import RunFolder
from fastspec.report import Block, Heading, Picture, Table, Text
from fastspec.sample_complexity_plots import KINDS, coverage_by_samples, losses_by_samples, scores_by_samples
from fastspec.sample_complexity_report import samples_needed, spread
from studies.files import made_with
from studies.sample_complexity import text
from studies.sample_complexity.needed import difference, matched, ratio

NEEDED = "Distinct samples from which on the layer score is {:g} or more"
COMMAND = "fastspec sample-complexity --seeds 2"
PARTS = {
    "deep": COMMAND,
    "two-layer": f"{COMMAND} --hidden 10 --samples 32 48 64 96 128 192 256 512",
    "near": f"{COMMAND} --kind boundary --boundary-mean 0.1 --boundary-sigma 0.1",
    "long": f"{COMMAND} --multi 1 5 --samples 64 96 128 192 256 384 512 --steps 160000",
}


def page(folders: Mapping[str, Sequence[RunFolder]], results: Mapping[str, xr.Dataset]) -> list[Block]:
    """All of it, from the runs by part."""
    config = folders["deep"][0].config
    threshold, outputs = config["threshold"], config["outputs"]
    deep, two = results["deep"], results["two-layer"]
    return [
        Text(text.QUESTION.format(**config, nodes="-".join(map(str, config["hidden"])), distance=_distance(config))),
        Heading("Answer"),
        Text(text.answer(deep, two, threshold)),
        ratio_table({"two hidden layers": deep, "one hidden layer": two}, threshold),
        Heading("What the paper says"),
        Text(text.paper(deep, two, threshold)),
        Heading("Two hidden layers"),
        seeds_table(deep, threshold),
        differences_table(deep),
        Picture("scores", text.SCORES.format(threshold), scores_by_samples(deep, threshold)),
        Picture("coverage", text.COVERAGE.format(threshold), coverage_by_samples(deep, threshold)),
        Picture("losses", text.LOSSES, losses_by_samples(deep, outputs)),
        Heading("One hidden layer"),
        seeds_table(two, threshold),
        differences_table(two),
        Picture("two-layer-scores", text.SCORES.format(threshold), scores_by_samples(two, threshold)),
        Heading("Why, and what it depends on"),
        *_settings(folders, results, threshold),
        Heading("Not tested"),
        Text(text.NOT_TESTED),
        Heading("How it was made"),
        Text("Several runs of one command differ in `--teacher-seed`, which counts from 0."),
        *(block for name, several in folders.items() for block in made_with(several, PARTS[name])),
    ]


def ratio_table(parts: Mapping[str, xr.Dataset], threshold: float) -> Table:
    """Samples about boundaries needed over Gaussian ones needed, student by student."""
    rows = []
    for part, results in parts.items():
        needed = samples_needed(results, threshold)
        for layer in needed.layer.values:
            for multi in needed.multi.values:
                gaussian, boundary = (needed.sel(kind=k, layer=layer, multi=multi) for k in ("gaussian", "boundary"))
                found = ratio(boundary, gaussian)
                middles = [_count(text.middle(table.values)) for table in (gaussian, boundary)]
                fewer = f"{found.fewer} of {len(found.values)}"
                rows.append([f"{part}, layer {layer}, {multi}×", *middles, str(found), fewer])
    columns = ("students", "Gaussian", "about boundaries", "ratio, median and range", "students that need fewer")
    title = NEEDED.format(threshold) + ", medians over students"
    return Table(title, columns, rows)


def seeds_table(results: xr.Dataset, threshold: float) -> Table:
    """Samples needed by every student."""
    needed = samples_needed(results, threshold)
    rows = [
        [
            f"layer {layer}, {multi}×, {KINDS[kind]}",
            *map(_count, needed.sel(layer=layer, multi=multi, kind=kind).values),
        ]
        for layer in needed.layer.values
        for multi in needed.multi.values
        for kind in needed.kind.values
    ]
    title = NEEDED.format(threshold) + ", every student"
    return Table(title, ("students", *(f"seed {seed}" for seed in needed.seed.values)), rows)


def differences_table(results: xr.Dataset) -> Table:
    """Layer scores with samples about boundaries less those with as many Gaussian ones."""
    pairs = [(int(layer), int(multi)) for layer in results.layer.values for multi in results.multi.values]
    rows = []
    for samples in map(int, np.sort(results.samples.values)):
        found = [difference(results, samples=samples, multi=multi, layer=layer) for layer, multi in pairs]
        rows.append([f"{samples:,}", *map(str, found)])
    title = (
        "Layer score with samples about boundaries less that with as many Gaussian ones: mean ± standard deviation, "
        "and how many students do better with samples about boundaries"
    )
    return Table(title, ("samples", *(f"layer {layer}, {multi}×" for layer, multi in pairs)), rows)


def _settings(
    folders: Mapping[str, Sequence[RunFolder]], results: Mapping[str, xr.Dataset], threshold: float
) -> list[Block]:
    """Runs with other samples and steps beside the same students of the main runs."""
    here, near = (_distance(folders[name][0].config) for name in ("deep", "near"))
    columns = {"near": (f"{here} away", f"{near} away"), "long": ("steps as above", "four times as many")}
    blocks: list[Block] = []
    for name, remark in (("near", text.NEAR), ("long", text.LONG)):
        other = results[name]
        same = matched(folders["deep"], folders[name]).sel(multi=other.multi, samples=other.samples)
        tables = [samples_needed(one, threshold) for one in (same, other)]
        rows = []
        for layer, multi, kind in product(other.layer.values, other.multi.values, same.kind.values):
            at = {"layer": layer, "multi": multi, "kind": kind}
            cells = [spread(one.sel(at).values) if kind in one.kind.values else "" for one in tables]
            rows.append([f"layer {layer}, {multi}×, {KINDS[kind]}", *cells])
        blocks.append(Text(remark.format(seeds=len(other.seed), near=near, std=folders["deep"][0].config["data_std"])))
        blocks.append(Table(NEEDED.format(threshold) + ", median and range", ("students", *columns[name]), rows))
    return blocks


def _distance(config: Mapping[str, float]) -> str:
    """How far from a boundary the outer samples of a triple are."""
    return f"{config['boundary_mean']:g} to {config['boundary_mean'] + config['boundary_sigma']:g}"


def _count(value: float) -> str:
    return f"{value:.0f}" if np.isfinite(value) else "–"
