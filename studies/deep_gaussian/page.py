"""The page of the deep Gaussian experiments, as blocks of a report."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr

from fastspec.deep_report import deep_blocks
from fastspec.experiments.results import RunFolder
from fastspec.report import Block, Heading, Table, Text, provenance_table
from studies.deep_gaussian.published import LUCK_MATTERS, STUDENT_SPECIALIZATION, Reading

ABOUT = """Deep ReLU students learn the outputs of separated teachers from Gaussian inputs, by plain SGD. The layer \
score is the mean over the teacher nodes of a hidden layer of the largest correlation with a student node, \
over {samples:,} held-out inputs. Readings are from Tian, Jiang, Gong, Morcos, *Luck Matters*, arXiv \
1905.13405, and Tian, *Student Specialization in Deep Rectified Networks With Finite Width and Input \
Dimension*, ICML 2020, arXiv 1909.13458; both give the squared difference averaged over samples and outputs, \
and learning rates on it, as torch.nn.MSELoss. A reading is met where the mean over seeds is in the range \
beside it."""
PARTS = {
    "luck-matters": ("Luck Matters: a student ten times as wide", LUCK_MATTERS),
    "student-specialization": ("Student Specialization: few and many distinct samples", STUDENT_SPECIALIZATION),
}


def page(folders: dict[str, RunFolder], results: dict[str, xr.Dataset], *, pictures: bool = True) -> list[Block]:
    """All of it, from the runs by preset."""
    samples = next(iter(folders.values())).config["evaluation_samples"]
    blocks: list[Block] = [Text(ABOUT.format(samples=samples))]
    for name, folder in folders.items():
        title, readings = PARTS[name]
        found, outputs = results[name], folder.config["outputs"]
        blocks += [Heading(title), readings_table(found, readings, outputs)]
        drawn = deep_blocks(found, folder.config, f"{name}-")[1:]  # without its heading
        blocks += [block for block in drawn if pictures or isinstance(block, (Text, Table))]
    blocks.append(Heading("Made with"))
    for name, folder in folders.items():
        took = sum(seconds for parts in folder.timings().values() for seconds in parts.values())
        command = f"`fastspec deep --preset {name}`: {took / 60:.1f} minutes in all"
        blocks += [Text(command), provenance_table(folder.provenance)]
    return blocks


def readings_table(results: xr.Dataset, readings: Sequence[Reading], outputs: int) -> Table:
    """Every reading beside what the run found: mean over seeds, and the smallest and largest."""
    rows = []
    for reading in readings:
        values = reading.found(results, outputs)
        mean, low, high = (float(v) for v in (values.mean(), values.min(), values.max()))
        form = "{:.4f}" if reading.layer else "{:.1e}"
        met = reading.low <= mean <= reading.high
        spread = f"{form.format(low)} … {form.format(high)}"
        limits = f"{reading.low:g} to {reading.high:g}"
        rows.append([reading.text, reading.published, form.format(mean), spread, limits, "met" if met else "missed"])
    columns = ("reading", "published", "found", "seeds", "range", "")
    return Table(f"Beside the published readings, {len(results.seed)} seeds", columns, rows)
