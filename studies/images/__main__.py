"""Writes README.md, figures/ and the summaries from finished runs."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from fastspec.experiments.results import RunFolder
from studies.files import answer, joined, load_run, records, summary, write_study
from studies.images.page import name_of, page, public

TITLE = "Students of teachers of images"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser("python -m studies.images", description=__doc__)
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="folders of runs of `fastspec images`; students of one teacher may be in several",
    )
    answer(parser, Path(__file__).parent, _write, arguments)


def _write(given: Namespace) -> None:
    folders: dict[str, list[RunFolder]] = {}
    for path in given.runs:
        folder = load_run(path, "images")
        folders.setdefault(name_of(folder.config), []).append(folder)
    results = {name: joined(several, ("multi",)) for name, several in folders.items()}
    summaries = {}
    for name, several in folders.items():
        record = [{**one, "config": public(one["config"])} for one in records(several)]
        summaries[f"summary-{name}.nc"] = summary(results[name], record)
    write_study(given.out, TITLE, page(folders, results), summaries)


if __name__ == "__main__":
    main()
