"""Writes README.md, figures/ and the summary from finished runs."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fastspec.atomic_files import write_atomically
from fastspec.experiments.results import netcdf
from fastspec.report import markdown, write_figures, write_text
from studies.arpit2019.page import page, summary
from studies.files import load_run

TITLE = "The Benefits of Over-parameterization at Initialization, reproduced"
DPI = 80


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser("python -m studies.arpit2019", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run of `fastspec init --preset arpit2019`")
    parser.add_argument("schemes", type=Path, nargs="?", help="folder of a run of `fastspec init`")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where to write (default: here)")
    parser.add_argument("--tables", action="store_true", help="no figures")
    given = parser.parse_args(arguments)
    try:
        write(given.run, given.schemes, given.out, given.tables)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def write(run: Path, schemes: Path | None, out: Path, tables: bool = False) -> None:
    """Write the study's files into `out` from the folder of a run, and that of one of all schemes."""
    folders = {"readings": load_run(run, "init")}
    if schemes is not None:
        folders["schemes"] = load_run(schemes, "init")
    results = {name: folder.results() for name, folder in folders.items()}
    blocks = page(folders, results, pictures=not tables)
    out.mkdir(parents=True, exist_ok=True)
    write_figures(out, blocks, DPI)
    write_text(out / "README.md", markdown(TITLE, blocks))
    record = json.dumps({"config": folders["readings"].config, "provenance": folders["readings"].provenance})
    content = netcdf(summary(results["readings"], record))
    write_atomically(out / "summary.nc", partial(Path.write_bytes, data=content))


if __name__ == "__main__":
    main()
