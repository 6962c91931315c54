"""Writes README.md, figures/ and the summaries from finished runs."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fastspec.atomic_files import write_atomically
from fastspec.experiments.results import RunFolder, netcdf
from fastspec.ops.checks import refuse
from fastspec.report import markdown, write_figures, write_text
from studies.deep_gaussian.page import PARTS, page
from studies.deep_gaussian.summary import summary

TITLE = "Deep students of separated teachers, reproduced"
DPI = 80


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser("python -m studies.deep_gaussian", description=__doc__)
    for name in PARTS:
        parser.add_argument(name, type=Path, help=f"folder of a run of `fastspec deep --preset {name}`")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where to write (default: here)")
    given = parser.parse_args(arguments)
    try:
        write({name: getattr(given, name) for name in PARTS}, given.out)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def write(runs: dict[str, Path], out: Path) -> None:
    """Write the study's files into `out` from the folders of runs, by preset."""
    folders = {name: RunFolder.load(path) for name, path in runs.items()}
    for folder in folders.values():
        if folder.experiment != "deep":
            refuse("folder", f"{str(folder.path)!r}, a run of {folder.experiment!r}", "a deep run")
    results = {name: folder.results() for name, folder in folders.items()}
    blocks = page(folders, results)
    out.mkdir(parents=True, exist_ok=True)
    write_figures(out, blocks, DPI)
    write_text(out / "README.md", markdown(TITLE, blocks))
    for name, folder in folders.items():
        record = {"config": folder.config, "provenance": folder.provenance, "wall seconds": folder.timings()}
        content = netcdf(summary(results[name], record))
        write_atomically(out / f"summary-{name}.nc", partial(Path.write_bytes, data=content))


if __name__ == "__main__":
    main()
