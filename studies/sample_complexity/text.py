"""What the page says, with the numbers of the runs."""

from __future__ import annotations

import numpy as np
import xarray as xr

from fastspec.sample_complexity_report import samples_needed
from studies.sample_complexity.needed import difference, ratio

QUESTION = """How many distinct samples does a student need before its hidden nodes become those of its teacher, and \
does it need fewer where the samples lie about the boundaries of the teacher's nodes? Students learn separated, tuned \
teachers with {nodes} hidden nodes, {inputs} inputs and {outputs} outputs from N distinct samples, {steps:,} SGD \
steps of {batch_size} whatever N. The samples are Gaussian, or triples: a point on the boundary of a node of the \
lowest layer, and one on each side of it along the node's weights, {distance} away, all scaled to one norm (the \
teacher-aware samples of the authors' code). Both kinds of students are measured on the same held-out Gaussian \
samples. The layer score is the mean over teacher nodes of the largest correlation with a student node; N is enough \
where the score is {threshold:g} or more for it and all larger numbers. Seeds 2t and 2t + 1 are two students of \
teacher t; students of the two kinds start from the same weights."""
ANSWER = """Gaussian samples are as good. In the lowest of two hidden layers, half of the students have enough with \
{g2:.0f} Gaussian samples at 2× and {g5:.0f} at 5×, and with {b2:.0f} and {b5:.0f} about boundaries; student by \
student, the number about boundaries is {r2:.2f} and {r5:.2f} times the Gaussian one (medians), and {t2:.2f} and \
{t5:.2f} times with one hidden layer. The kind matters only where neither suffices: with {least} samples those about \
boundaries put the lowest layer ahead by {d2:+.3f} at 2× and {d5:+.3f} at 5×, in {k2} and {k5} of {students} \
students. Wider students need more samples for the lowest layer, {g5:.0f} at 5× where {g2:.0f} do at 2×, but at 5× \
they get the upper layer with hardly more. Students of the teacher's own width have no such number: with no node to \
spare they may miss a teacher node at any N, and their numbers scatter."""
PAPER = """Student Specialization (Tian, ICML 2020, arXiv 1909.13458) proves, for one hidden layer, that a number of \
samples polynomial in width and input dimension suffices, for data that have been augmented about boundaries; the \
number includes what the augmentation adds. It is a bound from above and does not say that other samples need more. \
The saving that one might read into it is not found here: for the lowest layer of students of 2× and 5×, the medians \
above are {low:.2f} to {high:.2f}, with two hidden layers and with one. What samples about boundaries do is to put \
students ahead that have too few samples anyway."""
NEAR = """The points of a triple must not be too close. Two to four away is further than most Gaussian samples are \
from a boundary (they have a standard deviation of {std:g}); {near} away, where the boundary itself is shown best, \
students with nodes to spare need more than twice as many samples in the lowest layer, as if the three points of a \
triple counted little more than one. ({seeds} students, the same in both columns.)"""
LONG = """Four times as many steps change nothing at 5× and little at 1×: it is the samples that are short, not the \
time. ({seeds} students, the same in both columns, of up to 512 samples.)"""
NOT_TESTED = """Other dimensions and widths (the bound's powers of them), other teachers than tuned ones, data that \
are no Gaussian to begin with, samples about boundaries added to Gaussian ones, the augmentation that knows no \
teacher, and boundaries of upper layers."""
SCORES = "Layer score at the end against distinct samples, mean and range over seeds; the dashed line is at {:g}."
COVERAGE = "Share of teacher nodes with a student node above {:g} at the end against distinct samples, mean and range."
LOSSES = "Squared difference of teacher and student at the end, averaged over held-out samples and outputs."

SPARE = (2, 5)  # multiples of students that have nodes to spare


def answer(deep: xr.Dataset, two: xr.Dataset, threshold: float) -> str:
    """The answer, from the runs with two hidden layers and with one."""
    least = int(deep.samples.min())
    found: dict[str, float] = {"least": least, "students": len(deep.seed)}
    for multi in SPARE:
        gaussian, boundary = _lowest(deep, multi, threshold)
        few = difference(deep, samples=least, multi=multi, layer=1)
        found |= {f"g{multi}": middle(gaussian.values), f"b{multi}": middle(boundary.values)}
        found |= {f"d{multi}": few.mean, f"k{multi}": few.better}
        found |= {f"{name}{multi}": _ratio(part, multi, threshold) for name, part in (("r", deep), ("t", two))}
    return ANSWER.format(**found)


def paper(deep: xr.Dataset, two: xr.Dataset, threshold: float) -> str:
    """What the paper says, and what of it is found."""
    found = [_ratio(part, multi, threshold) for part in (deep, two) for multi in SPARE]
    return PAPER.format(low=min(found), high=max(found))


def _ratio(results: xr.Dataset, multi: int, threshold: float) -> float:
    """Samples about boundaries needed over Gaussian ones needed for the lowest layer, median."""
    gaussian, boundary = _lowest(results, multi, threshold)
    return ratio(boundary, gaussian).middle


def _lowest(results: xr.Dataset, multi: int, threshold: float) -> tuple[xr.DataArray, xr.DataArray]:
    """Samples needed for the lowest layer at a multiple, Gaussian ones and ones about boundaries."""
    needed = samples_needed(results, threshold).sel(layer=1, multi=multi)
    return needed.sel(kind="gaussian"), needed.sel(kind="boundary")


def middle(values: np.ndarray) -> float:
    """The median, numbers that are not known being larger than all others."""
    return float(np.median(np.where(np.isnan(values), np.inf, values)))
