"""Writes README.md, figures/ and the summaries from finished runs."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fastspec.atomic_files import write_atomically
from fastspec.experiments.results import netcdf
from fastspec.report import markdown, write_figures, write_text
from studies.files import load_run
from studies.icml2020.page import page, seconds, summary_file
from studies.icml2020.summary import summary

TITLE = "Student Specialization, the two-layer study, reproduced"
DPI = 80


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser("python -m studies.icml2020", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run of `fastspec two-layer --preset icml2020`")
    parser.add_argument("own_teachers", type=Path, nargs="?", help="folder of a run with --own-teachers")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where to write (default: here)")
    parser.add_argument("--tables", action="store_true", help="no figures")
    given = parser.parse_args(arguments)
    try:
        write(given.run, given.own_teachers, given.out, given.tables)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def write(run: Path, own_teachers: Path | None, out: Path, tables: bool = False) -> None:
    """Write the study's files into `out` from the folder of a run, and that of one with a teacher for each seed."""
    folders = {"one teacher": load_run(run, "two-layer")}
    if own_teachers is not None:
        folders["own teachers"] = load_run(own_teachers, "two-layer")
    results = {name: folder.results() for name, folder in folders.items()}
    blocks = page(folders, results, pictures=not tables)
    out.mkdir(parents=True, exist_ok=True)
    write_figures(out, blocks, DPI)
    write_text(out / "README.md", markdown(TITLE, blocks))
    for name, folder in folders.items():
        record = {"config": folder.config, "provenance": folder.provenance, "wall seconds": seconds(folder)}
        content = netcdf(summary(results[name], record))
        write_atomically(out / summary_file(name), partial(Path.write_bytes, data=content))


if __name__ == "__main__":
    main()
