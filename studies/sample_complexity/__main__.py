"""Writes README.md, figures/ and the summaries from finished runs."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path

from studies.files import answer, joined, load_run, records, summary, write_study
from studies.sample_complexity.page import PARTS, page

TITLE = "Few and many samples, Gaussian and about boundaries"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser("python -m studies.sample_complexity", description=__doc__)
    for name, command in PARTS.items():
        about = f"folders of runs of `{command}`, one for each teacher"
        parser.add_argument(f"--{name}", type=Path, nargs="+", required=True, metavar="DIR", dest=name, help=about)
    answer(
        parser,
        Path(__file__).parent,
        lambda given: write({name: getattr(given, name) for name in PARTS}, given.out),
        arguments,
    )


def write(runs: Mapping[str, Sequence[Path]], out: Path) -> None:
    """Write the study's files into `out` from the folders of runs, by part."""
    folders = {name: [load_run(path, "sample-complexity") for path in paths] for name, paths in runs.items()}
    results = {name: joined(several) for name, several in folders.items()}
    summaries = {f"summary-{name}.nc": summary(results[name], records(several)) for name, several in folders.items()}
    write_study(out, TITLE, page(folders, results), summaries)


if __name__ == "__main__":
    main()
