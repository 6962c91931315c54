"""Writes README.md, figures/ and the summary from finished runs."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from studies.arpit2019.page import page
from studies.files import answer, load_run, summary, write_study

TITLE = "The Benefits of Over-parameterization at Initialization, reproduced"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser("python -m studies.arpit2019", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run of `fastspec init --preset arpit2019`")
    parser.add_argument("schemes", type=Path, nargs="?", help="folder of a run of `fastspec init`")
    parser.add_argument("--tables", action="store_true", help="no figures")
    answer(
        parser,
        Path(__file__).parent,
        lambda given: write(given.run, given.schemes, given.out, given.tables),
        arguments,
    )


def write(run: Path, schemes: Path | None, out: Path, tables: bool = False) -> None:
    """Write the study's files into `out` from the folder of a run, and that of one of all schemes."""
    folders = {"readings": load_run(run, "init")}
    if schemes is not None:
        folders["schemes"] = load_run(schemes, "init")
    results = {name: folder.results() for name, folder in folders.items()}
    readings = folders["readings"]
    small = summary(results["readings"], {"config": readings.config, "provenance": readings.provenance})
    write_study(out, TITLE, page(folders, results, pictures=not tables), {"summary.nc": small})


if __name__ == "__main__":
    main()
