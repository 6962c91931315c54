"""Reports of run folders, from their saved results alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastspec import report
from fastspec.ablation_report import ablation_blocks
from fastspec.deep_report import deep_blocks
from fastspec.digits_report import digits_blocks
from fastspec.experiments.demo import DIGITS, GAUSSIAN
from fastspec.experiments.results import CONFIG, RESULTS, RunFolder
from fastspec.images_report import images_blocks
from fastspec.initialization_report import bn_bias_blocks, init_blocks
from fastspec.matrix_dynamics_report import matrix_dynamics_blocks
from fastspec.ode_report import ode_blocks
from fastspec.ops.checks import refuse
from fastspec.sample_complexity_report import sample_complexity_blocks
from fastspec.two_layer_report import two_layer_blocks

TITLES = {
    "demo": "fastspec demo: which student node has become which teacher node",
    "two-layer": "fastspec two-layer",
    "deep": "fastspec deep",
    "ablation": "fastspec ablation",
    "sample-complexity": "fastspec sample-complexity",
    "digits": "fastspec digits",
    "images": "fastspec images",
    "matrix-dynamics": "fastspec matrix-dynamics",
    "init": "fastspec init",
    "ode": "fastspec ode",
    "bn-bias": "fastspec bn-bias",
}


def redraw(path: str | Path) -> list[report.Block]:
    """Write figures, report.md and report.html of the run in a folder; the blocks of the report.

    Raises ValueError or FileNotFoundError, naming the file, for missing, truncated and foreign files.
    """
    folder = RunFolder.load(path)
    blocks = [*_blocks(folder), report.Heading("Provenance"), report.provenance_table(folder.provenance)]
    timings = folder.timings()
    if timings:
        blocks.append(report.timings_table(timings))
    report.write_report(folder.path, TITLES[folder.experiment], blocks)
    return blocks


def _blocks(folder: RunFolder) -> list[report.Block]:
    drawn: dict[str, Callable[..., list[report.Block]]] = {
        "two-layer": two_layer_blocks,
        "deep": deep_blocks,
        "ablation": ablation_blocks,
        "sample-complexity": sample_complexity_blocks,
        "digits": digits_blocks,
        "images": images_blocks,
        "matrix-dynamics": matrix_dynamics_blocks,
        "init": init_blocks,
        "ode": ode_blocks,
        "bn-bias": bn_bias_blocks,
    }
    if folder.experiment == "demo":
        parts = [(name, RunFolder.load(folder.path / name)) for name in (GAUSSIAN, DIGITS)]
    elif folder.experiment in drawn:
        parts = [("", folder)]
    else:
        refuse(f"file {str(folder.path / CONFIG)!r}", repr(folder.experiment), f"a run of {', '.join(TITLES)}")
    blocks: list[report.Block] = []
    for name, part in parts:
        results = part.results()
        try:
            blocks += drawn[part.experiment](results, part.config, f"{name}-" if name else "")
        except (KeyError, AttributeError) as error:
            refuse(f"file {str(part.path / RESULTS)!r}", f"results without {error}", f"those of {part.experiment}")
    return blocks
