"""Writes README.md, figures/ and summary.nc from a finished run."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from fastspec.data import gaussian
from fastspec.experiments.results import WEIGHTS, RunFolder
from fastspec.matrix_dynamics_report import matrix_dynamics_blocks, split
from fastspec.report import Block, Heading, Table, Text, provenance_table
from fastspec.tensor_files import load_tensors
from studies.files import answer, load_run, summary, write_study

TITLE = "Luck Matters, over-parameterisation with matrix dynamics, reproduced"
LUCKY = (1.0719, 1.4610)  # fan-out norms of the 20 lucky nodes of the published run: least, largest
OTHERS = (4.2515e-05, 1.1351e-04, 1.5340e-03)  # of its 20 other nodes and the bias: least, median, largest
ABOUT = """The published run (one seed, the paper's code: `test_multilayer.py --perturb --node_multi 2 --lr 0.05 \
--init_std 0.1 --batchsize 64 --seed 232`) prints the fan-out norms of its 40 student nodes, and of the bias, after \
20,000 steps. Seeds are not comparable one by one: every seed here has a teacher, a student and samples of its own. \
The published dynamics are those of *mean_field*, except that they leave the biases above a layer out of its H; with \
one hidden layer their H = β ⊙ E[d dᵀ] is the mean of H. *exact* is the gradient of the same batches."""

LIMIT = 2e-3  # above the published others
EXCEPTIONS = """Where a seed has a larger one, it is of one of three kinds: a node that is alike with another, whose \
fan-out is the opposite, so that their sum does nothing and nothing pulls at it; a node that is hardly ever active, \
and so hardly ever moved; or one that is still on its way to 0. The largest of every such seed:"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser("python -m studies.over_parameterization", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run of `fastspec matrix-dynamics`")
    answer(parser, Path(__file__).parent, lambda given: write(given.run, given.out), arguments)


def write(run: Path, out: Path) -> None:
    """Write the study's files into `out` from the folder of a run."""
    folder = load_run(run, "matrix-dynamics")
    results, record = folder.results(), {"config": folder.config, "provenance": folder.provenance}
    write_study(out, TITLE, page(folder, results), {"summary.nc": summary(results, record)})


def page(folder: RunFolder, results: xr.Dataset) -> list[Block]:
    """The published readings beside the run's, then the run's own report."""
    nodes = folder.config["widths"][1]
    steps = f"{folder.config['steps']:,} steps"
    return [
        Heading("Beside the published readings"),
        Text(ABOUT),
        comparison(results, nodes, steps),
        Text(EXCEPTIONS),
        exceptions(folder, results),
        *matrix_dynamics_blocks(results, folder.config),
        Heading("How it was made"),
        Text("`fastspec matrix-dynamics`, then `python -m studies.over_parameterization RUN`. Arrays: `summary.nc`."),
        provenance_table(folder.provenance),
    ]


def comparison(results: xr.Dataset, nodes: int, steps: str) -> Table:
    """Fan-outs of lucky nodes and others at the end: the published run, and all seeds of each method."""
    rows = [
        ["published, one seed", *(f"{value:.2f}" for value in LUCKY), *(f"{value:.1e}" for value in OTHERS[1:]), "–"]
    ]
    for method in results.dynamics.values:
        final = results.isel(step=-1, layer=0).sel(dynamics=method)
        lucky, others = split(final.fan_out.values, nodes)
        cells = [f"{lucky.min():.2f}", f"{lucky.max():.2f}", f"{np.median(others):.1e}", f"{others.max():.1e}"]
        below = int((final.fan_out.values[:, nodes:].max(1) < 2e-3).sum())
        rows.append([f"{method}, {results.sizes['seed']} seeds", *cells, f"{below} of {results.sizes['seed']}"])
    columns = (
        "run",
        "lucky, least",
        "lucky, largest",
        "others, median",
        "others, largest",
        "seeds with all below 2e-3",
    )
    return Table(f"Fan-out norms after {steps}", columns, rows)


def exceptions(folder: RunFolder, results: xr.Dataset) -> Table:
    """The largest fan-out of another than a lucky node, where it is above the published ones, and why."""
    nodes, rows = folder.config["widths"][1], []
    weights = load_tensors(folder.path / WEIGHTS, "weights of a run")[0]
    x = gaussian(20_000, folder.config["widths"][0], std=folder.config["x_std"], seed=0, dtype=torch.float64)
    for method in results.dynamics.values:
        for seed in results.seed.values:
            w1, b1, w2 = (weights[f"student {method} seed {seed}.{name}"].double() for name in ("w1", "b1", "w2"))
            fan_out = w2.norm(dim=0)
            k = nodes + int(fan_out[nodes:].argmax())
            if fan_out[k] <= LIMIT:
                continue
            hidden = torch.relu(x @ w1.T + b1)
            alike = torch.corrcoef(hidden.T)[k].nan_to_num(-1.0)
            alike[k] = -1.0
            j = int(alike.argmax())
            before = float(results.fan_out.sel(dynamics=method, seed=seed, student=k).isel(layer=0, step=-2))
            cells = [f"{before:.4f}", f"{fan_out[k]:.4f}", f"{(hidden[:, k] > 0).double().mean():.3f}"]
            together = (w2[:, k] + w2[:, j]).norm()
            rows.append([f"{method}, seed {seed}, node {k}", *cells, f"{alike[j]:.3f} (node {j})", f"{together:.4f}"])
    step = int(results.step[-2])
    columns = ("node", f"fan-out at step {step:,}", "at the end", "active", "most alike", "norm of both fan-outs' sum")
    return Table("Other nodes that keep a fan-out", columns, rows)


if __name__ == "__main__":
    main()
