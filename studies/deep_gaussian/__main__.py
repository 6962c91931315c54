"""Writes README.md, figures/ and the summaries from finished runs."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path

from studies.deep_gaussian.page import PARTS, page
from studies.deep_gaussian.summary import kept
from studies.files import answer_parts, joined, load_run, write_study

TITLE = "Deep students of separated teachers, reproduced"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser("python -m studies.deep_gaussian", description=__doc__)
    commands = {name: part.command for name, part in PARTS.items()}
    answer_parts(parser, Path(__file__).parent, commands, write, arguments)


def write(runs: Mapping[str, Sequence[Path]], out: Path) -> None:
    """Write the study's files into `out` from the folders of runs, by preset."""
    folders = {name: [load_run(path, "deep") for path in paths] for name, paths in runs.items()}
    results = {name: joined(several, ("samples",)) for name, several in folders.items()}
    summaries = {f"summary-{name}.nc": kept(results[name], several) for name, several in folders.items()}
    write_study(out, TITLE, page(folders, results), summaries)


if __name__ == "__main__":
    main()
