"""The page of the study, as blocks of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from fastspec.experiments.results import RunFolder
from fastspec.experiments.two_layer import ICML2020
from fastspec.figures import at, early_step
from fastspec.report import Block, Heading, Picture, Table, Text, provenance_table
from fastspec.two_layer_report import figures
from studies.files import command
from studies.icml2020.comparison import find
from studies.icml2020.published import READINGS, TEACHER_NODES

KEPT = {5: ("success-rate", "loss"), 10: ("l-shape", "success-rate", "loss", "luck", "trajectories")}  # 20: all
ABOUT = """Students of {multis} times the teacher's nodes learn separated two-layer teachers of {nodes} nodes, whose \
fan-outs fall as (i + 1)^−p with p = {decays}: {students:,} students, {steps:,} steps of SGD each, from {inputs} \
Gaussian inputs to {outputs} outputs, in {dtype}. A teacher node is *covered* where a student node correlates with it \
above {threshold:g} over {samples:,} held-out samples; the success rate is the share of seeds that cover it. \
Source: Tian, *Student Specialization in Deep Rectified Networks With Finite Width and Input Dimension*, ICML 2020, \
arXiv 1909.13458; the readings are from its figures."""
COMPARED = """The authors report the squared difference averaged over samples and outputs; fastspec's loss is half its \
sum over outputs, so losses of this table are 2/{outputs} of those elsewhere. `deviation` is the difference from the \
reading in its standard errors, where the published mean of 32 seeds is taken to spread as ours does."""
OWN = """The authors' code draws a teacher and samples anew for every seed, so that their means are over teachers as \
well; the run of all jobs has one teacher for the 32 seeds of a job, which tells how students differ on one teacher. \
The columns *own teachers* are a second run, in which every seed has a teacher and samples of its own."""


def page(folders: Mapping[str, RunFolder], results: Mapping[str, xr.Dataset], *, pictures: bool = True) -> list[Block]:
    """All of it; the first run is the one of all jobs."""
    folder, found = next(iter(folders.values())), next(iter(results.values()))
    return [
        Text(_about(folder, found)),
        *_comparison(results, folder.config["outputs"]),
        *_jobs(found, folder.config["threshold"]),
        *(_pictures(found, folder.config["threshold"]) if pictures else []),
        *_origin(folders),
    ]


def _about(folder: RunFolder, results: xr.Dataset) -> str:
    config = folder.config
    return ABOUT.format(
        multis=_listed(config["multi"]),
        nodes=_listed(config["teacher_nodes"]),
        decays=_listed(config["teacher_strength_decay"]),
        students=results.diverged_step.size,
        samples=config["evaluation_samples"],
        **{name: config[name] for name in ("steps", "inputs", "outputs", "dtype", "threshold")},
    )


def _comparison(results: Mapping[str, xr.Dataset], outputs: int) -> list[Block]:
    """Every published reading beside the runs that have its job."""
    columns, rows = ["reading", "published"], []
    deviations: dict[str, list[float]] = {name: [] for name in results}
    for name in results:
        columns += [name, "difference", "deviation", "seeds"]
    for reading in READINGS:
        cells = [reading.published]
        for name, run in results.items():
            try:
                found = find(run, reading, outputs)
            except KeyError:  # a job that the run has not
                cells += ["–"] * 4
                continue
            deviations[name].append(abs(found.deviation))
            cells += [f"{found.value:.2f}", f"{found.difference:+.2f}", f"{found.deviation:+.1f}", found.seeds]
        rows.append([str(reading), *cells])
    verdicts = [
        f"*{name}*: {sum(d <= 2 for d in found)} of {len(found)} readings within 2 standard errors, all within "
        f"{max(found):.1f}"
        for name, found in deviations.items()
        if found
    ]
    blocks: list[Block] = [
        Heading("Beside the published readings"),
        Text(COMPARED.format(outputs=outputs)),
        Table(f"{TEACHER_NODES} teacher nodes, after 100 epochs", columns, rows),
    ]
    if verdicts:
        blocks.append(Text("; ".join(verdicts) + "."))
    return blocks + [Text(OWN)] * (len(results) > 1)


def _jobs(results: xr.Dataset, threshold: float) -> list[Block]:
    """Coverage and loss of every job."""
    early = early_step(results, 0.05)
    blocks: list[Block] = [Heading("All jobs")]
    multis = [f"{multi}×" for multi in results.multi.values]
    for m in results.teacher_nodes.values:
        picked = results.sel(teacher_nodes=m)
        covered = (picked.best_correlation > threshold).sum("teacher")
        with np.errstate(divide="ignore"):
            loss = np.log10(picked.loss.isel(step=-1))
        rows = []
        for decay in results.strength_decay.values:
            cells = []
            for multi in results.multi.values:
                at_times = [covered.sel(strength_decay=decay, multi=multi, step=s) for s in (early, results.step[-1])]
                final = loss.sel(strength_decay=decay, multi=multi)
                first, last = (f"{float(count.mean()):.1f}" for count in at_times)
                cells.append(f"{first} → {last}; {float(final.mean()):.1f} ± {float(final.std()):.1f}")
            rows.append([f"p = {decay:g}", *cells])
        title = (
            f"{m} teacher nodes: covered after {at(results, early)} → at the end, mean over seeds; "
            "log10 of the held-out loss at the end, mean ± sd over seeds"
        )
        blocks.append(Table(title, ("decay", *multis), rows))
    return blocks


def _pictures(results: xr.Dataset, threshold: float) -> list[Block]:
    blocks: list[Block] = []
    for m in results.teacher_nodes.values:
        picked = results.sel(teacher_nodes=m).isel(teacher=slice(0, int(m)))
        blocks.append(Heading(f"{m} teacher nodes"))
        for name, (caption, figure) in figures(picked, threshold).items():
            if name in KEPT.get(int(m), (name,)):
                blocks.append(Picture(f"m{m}-{name}", caption, figure))
    return blocks


def _origin(folders: Mapping[str, RunFolder]) -> list[Block]:
    blocks: list[Block] = [Heading("How it was made")]
    for name, folder in folders.items():
        sums = seconds(folder)
        took = ", ".join(f"{activity} {seconds / 60:.1f} min" for activity, seconds in sums.items())
        asked = command("fastspec two-layer --preset icml2020", folder.config, ICML2020)
        blocks.append(Text(f"`{asked}` ({name}): {took} of wall time. Its arrays: `{summary_file(name)}`."))
        blocks.append(provenance_table(folder.provenance))
    blocks.append(
        Text("`python -m studies.icml2020 RUN OWN_TEACHERS_RUN` wrote this page from the folders of both runs.")
    )
    return blocks


def seconds(folder: RunFolder) -> dict[str, float]:
    """Wall seconds of each activity over all jobs."""
    sums: dict[str, float] = {}
    for activities in folder.timings().values():
        for name, seconds in activities.items():
            sums[name] = round(sums.get(name, 0.0) + seconds, 1)
    return sums


def summary_file(name: str) -> str:
    return {"one teacher": "summary.nc", "own teachers": "summary-own-teachers.nc"}[name]


def _listed(values: Sequence[float]) -> str:
    *most, last = (f"{value:g}" for value in values)
    return f"{', '.join(most)} and {last}" if most else last
