"""Writes README.md, figures/ and the summaries from finished runs."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from studies.deep_gaussian.page import PARTS, page
from studies.deep_gaussian.summary import kept
from studies.files import answer, joined, load_run, write_study

TITLE = "Deep students of separated teachers, reproduced"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser("python -m studies.deep_gaussian", description=__doc__)
    for name, part in PARTS.items():
        about = f"folders of runs of `{part.command}`, one or more"
        parser.add_argument(f"--{name}", type=Path, nargs="+", required=True, metavar="DIR", dest=name, help=about)
    answer(
        parser,
        Path(__file__).parent,
        lambda given: write({name: getattr(given, name) for name in PARTS}, given.out),
        arguments,
    )


def write(runs: dict[str, list[Path]], out: Path) -> None:
    """Write the study's files into `out` from the folders of runs, by preset."""
    folders = {name: [load_run(path, "deep") for path in paths] for name, paths in runs.items()}
    results = {name: joined(several, ("samples",)) for name, several in folders.items()}
    summaries = {f"summary-{name}.nc": kept(results[name], several) for name, several in folders.items()}
    write_study(out, TITLE, page(folders, results), summaries)


if __name__ == "__main__":
    main()
