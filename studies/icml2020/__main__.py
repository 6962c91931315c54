"""Writes README.md, figures/ and the summaries from finished runs."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from studies.files import answer, load_run, write_study
from studies.icml2020.page import page, seconds, summary_file
from studies.icml2020.summary import summary

TITLE = "Student Specialization, the two-layer study, reproduced"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser("python -m studies.icml2020", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run of `fastspec two-layer --preset icml2020`")
    parser.add_argument("own_teachers", type=Path, nargs="?", help="folder of a run with --own-teachers")
    parser.add_argument("--tables", action="store_true", help="no figures")
    answer(
        parser,
        Path(__file__).parent,
        lambda given: write(given.run, given.own_teachers, given.out, given.tables),
        arguments,
    )


def write(run: Path, own_teachers: Path | None, out: Path, tables: bool = False) -> None:
    """Write the study's files into `out` from the folder of a run, and that of one with a teacher for each seed."""
    folders = {"one teacher": load_run(run, "two-layer")}
    if own_teachers is not None:
        folders["own teachers"] = load_run(own_teachers, "two-layer")
    results = {name: folder.results() for name, folder in folders.items()}
    summaries = {}
    for name, folder in folders.items():
        record = {"config": folder.config, "provenance": folder.provenance, "wall seconds": seconds(folder)}
        summaries[summary_file(name)] = summary(results[name], record)
    write_study(out, TITLE, page(folders, results, pictures=not tables), summaries)


if __name__ == "__main__":
    main()
