"""The page of the images experiments, as blocks of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import spearmanr

from fastspec.experiments.images import Images
from fastspec.experiments.results import WEIGHTS, RunFolder
from fastspec.images_report import DATA, images_blocks
from fastspec.pruning import mean_fan_out
from fastspec.report import Block, Heading, Picture, Table, Text, percent, provenance_table
from fastspec.tensor_files import load_tensors
from studies.files import command

PUBLISHED = {"teacher": 0.8609, "pruned teacher": 0.8421, "student 1×": 0.856, "student 2×": 0.863}  # CIFAR-10
THRESHOLD = 0.95
ABOUT = """A teacher learns images from their labels; students of its depth learn its logits, at 1, 2 or 5 times its \
width, and never see a label (Tian, *Student Specialization in Deep Rectified Networks With Finite Width and Input \
Dimension*, ICML 2020, arXiv 1909.13458). A pruned teacher has lost the nodes of lowest mean fan-out of every hidden \
layer, without further training, before students learn from it. Everything is measured on held-out images without \
noise; the activations of a channel at all positions are samples of one node."""
ACCURACIES = """Dense students answer as their teachers do, on 98 % of the images and more, the wider the more, and \
so also where a teacher is wrong; a pruned teacher is a worse one, and they follow it down. Convolutional students of \
digits do nearly as well. Those of MNIST saw 1.6 epochs and those of CIFAR-10 one, at the pace of one busy core: they \
are still learning."""
SCORES = """The first number of a cell is chance: the score of a student before its first step. Dense students of \
digits specialise in the lowest layer: 5 times as wide ones match 82 % of the teacher's nodes there above 0.95, and \
96 % where the nodes of low fan-out were pruned away before. Wider students match more nodes in every layer, after \
the same steps; the layers above follow at some distance, and so it is on MNIST, further behind. Convolutional \
students come to match channels of the lowest layer, a third of them on MNIST, and none or hardly any of those above, \
digits' too, whose outputs agree on 95 to 99 % of the images: agreement in what is answered comes before agreement of \
nodes, and nodes agree from the bottom upwards. On CIFAR-10, after one epoch, no channel is matched, and scores fall \
from the lowest layer to those above."""
FAN_OUTS = """In dense networks the nodes that the layer above makes most of are matched best, in the lowest layer \
above all: students learn the strong teacher nodes first, as the two-layer theory of the paper says, and pruning \
removes those that they match least. Nodes that do not vary on the held-out images are left out."""
READINGS = """The published networks have four times the channels of those here, and the authors' code trains on \
crops and mirror images, as here, for 100 epochs of batches of 64. Here the teacher had 5 epochs and each student \
one. So accuracies are far below the published ones, students are further behind their teacher, and **the readings \
are not reproduced**. Nor is the price of pruning: here it removed 4 of the 16 channels of every layer; the share \
that the paper removed is not known to this page.

The published networks are `fastspec images --preset cifar10 --folder DIR` (`--prune` for the pruned teacher): 100 \
epochs each of the teacher and of students of 1 and 2 times its width, by Adam. One core of the processor below \
trains on 223 images a second with 64 channels and on 70 with 128, and answers 769 with 64 (seconds of the processor \
for 64 images, taken by hand): about 6 hours for the teacher, 8 for the student of its width and 22 for the other, a \
day and a half in all. It has not been run."""
MADE = """Digits are scikit-learn's. MNIST's 70,000 images are from a copy as PNG files, which is lossless. \
CIFAR-10's 60,000 are from a copy as **JPEG files, which is not**: pixels differ a little from the published ones, \
and accuracies may. Both were written into the published formats in a random order, as the copies are sorted by \
class; DIR is the folder with those files. Held-out images are MNIST's and CIFAR-10's own test images, the first \
2,000 or 3,000 where networks are convolutional. Each command is followed by its wall time on a core that other work \
had most of; then `python -m studies.images RUN ...` wrote this page and the arrays, `summary-*.nc`, which say where \
each run is from. Each student of CIFAR-10 was a run of its own; the teacher of the first was copied into the others, \
which would have made the same one."""


def name_of(config: Mapping[str, Any]) -> str:
    """What a run is called on the page and in the names of its files."""
    return f"{config['data']}-{config['network']}" + ("-pruned" if config["prune"] else "")


def public(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the place where the images lie."""
    return {**config, "folder": "DIR" if config["folder"] else ""}


def page(folders: Mapping[str, Sequence[RunFolder]], results: Mapping[str, xr.Dataset]) -> list[Block]:
    """All of it, from the runs by name."""
    blocks: list[Block] = [Text(ABOUT), accuracies(folders, results), Text(ACCURACIES)]
    blocks += [Heading("Do the students specialise?"), scores(results), Text(SCORES)]
    blocks += [fan_outs(folders, results), Text(FAN_OUTS)]
    blocks += [Heading("Beside the published readings"), readings(results), Text(READINGS)]
    for name, several in folders.items():
        heading, text, *rest = images_blocks(results[name], several[0].config, f"{name}-")
        blocks += [heading, text, *(block for block in rest if isinstance(block, Picture))]
    blocks += [Heading("How it was made"), Text(MADE)]
    every = [folder for several in folders.values() for folder in several]
    for folder in every:
        seconds = sum(time for parts in folder.timings().values() for time in parts.values())
        asked = command("fastspec images", public(folder.config), Images())
        blocks.append(Text(f"`{asked}`: {seconds / 60:.0f} min."))
    return [*blocks, provenance_table(every[-1].provenance)]


def accuracies(folders: Mapping[str, Sequence[RunFolder]], results: Mapping[str, xr.Dataset]) -> Table:
    """Shares of held-out images that the teacher and students at the end answer rightly, mean over seeds."""
    rows = []
    for name, found in results.items():
        config, final = folders[name][0].config, found.isel(step=-1).mean("seed")
        teacher = percent(float(found.whole_teacher_accuracy_held_out))
        if config["prune"]:
            teacher += f", pruned {percent(float(found.teacher_accuracy_held_out))}"
        nodes = "-".join(str(int(width)) for width in found.teacher_nodes)
        for multi in found.multi.values:
            shares = [percent(float(final[part].sel(multi=multi))) for part in ("accuracy", "agreement")]
            rows.append([DATA[config["data"]], config["network"], nodes, teacher, f"{multi}×", *shares])
    columns = ("images", "layers", "teacher's hidden nodes", "teacher right", "student", "right", "as the teacher")
    return Table("Held-out images, after training", columns, rows)


def scores(results: Mapping[str, xr.Dataset]) -> Table:
    """Layer scores before and after training and covered teacher nodes, by layer, mean over seeds."""
    deepest = max(found.sizes["layer"] for found in results.values())
    rows = []
    for name, found in results.items():
        first, final = (found.isel(step=at).mean("seed") for at in (0, -1))
        varying = found.teacher_nodes.values - found.constant_teachers.isel(step=-1).max(("multi", "seed")).values
        for multi in found.multi.values:
            before, after = (row.layer_score.sel(multi=multi).values for row in (first, final))
            best = found.best_correlation.isel(step=-1).sel(multi=multi)
            covered = (best > THRESHOLD).sum("teacher").mean("seed").values / varying
            cells = [f"{a:.2f} → {b:.2f} ({100 * c:.0f} %)" for a, b, c in zip(before, after, covered, strict=True)]
            rows.append([name, f"{multi}×", *cells, *["–"] * (deepest - len(cells))])
    columns = ("run", "student", *(f"layer {layer}" for layer in range(1, deepest + 1)))
    title = f"Layer score before → after training (share of the varying teacher nodes with one above {THRESHOLD})"
    return Table(title, columns, rows)


def fan_outs(folders: Mapping[str, Sequence[RunFolder]], results: Mapping[str, xr.Dataset]) -> Table:
    """Whether teacher nodes of large fan-out are the ones that are matched: rank correlations, by layer."""
    deepest = max(found.sizes["layer"] for found in results.values())
    rows = []
    for name, found in results.items():
        weights = load_tensors(folders[name][0].path / WEIGHTS, "weights of a run")[0]
        best = found.best_correlation.isel(step=-1, multi=-1).mean("seed")
        cells = []
        for layer, nodes in enumerate(found.teacher_nodes.values.tolist(), start=1):
            fan_out = mean_fan_out(weights[f"teacher.w{layer + 1}"], nodes).numpy()
            matched = best.sel(layer=layer).values[:nodes]
            known = np.isfinite(matched)
            cells.append(f"{spearmanr(fan_out[known], matched[known]).statistic:.2f}" if known.sum() > 2 else "–")
        rows.append([name, f"{found.multi.values[-1]}×", *cells, *["–"] * (deepest - len(cells))])
    columns = ("run", "student", *(f"layer {layer}" for layer in range(1, deepest + 1)))
    return Table("Rank correlation of a teacher node's mean fan-out with its best correlation", columns, rows)


def readings(results: Mapping[str, xr.Dataset]) -> Table:
    """Published accuracies on CIFAR-10 beside those of the runs on it."""
    rows = []
    whole, pruned = (results.get(f"cifar10-convolutional{end}") for end in ("", "-pruned"))
    found = {}
    if whole is not None:
        final = whole.accuracy.isel(step=-1).mean("seed")
        found["teacher"] = float(whole.whole_teacher_accuracy_held_out)
        found |= {f"student {multi}×": float(final.sel(multi=multi)) for multi in whole.multi.values}
    if pruned is not None:
        found["pruned teacher"] = float(pruned.teacher_accuracy_held_out)
    for what, published in PUBLISHED.items():
        here, teacher = found.get(what), found.get("teacher")
        below = f"{100 * (here - teacher):+.1f}" if here is not None and teacher is not None else "–"
        row = [what, percent(published), f"{100 * (published - PUBLISHED['teacher']):+.1f}"]
        rows.append([*row, percent(here) if here is not None else "–", below])
    columns = ("CIFAR-10", "published, 64-64-64-64", "minus teacher", "here", "minus teacher")
    return Table("Right on held-out images", columns, rows)
