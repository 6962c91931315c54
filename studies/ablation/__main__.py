"""Writes README.md, figures/ and the summaries from finished runs."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path

from studies.ablation.page import PARTS, kept, page
from studies.files import answer_parts, joined, load_run, records, summary, write_study

TITLE = "What deep students' specialization depends on"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser("python -m studies.ablation", description=__doc__)
    answer_parts(parser, Path(__file__).parent, PARTS, write, arguments)


def write(runs: Mapping[str, Sequence[Path]], out: Path) -> None:
    """Write the study's files into `out` from the folders of runs, by part."""
    folders = {name: [load_run(path, "ablation") for path in paths] for name, paths in runs.items()}
    results = {name: joined(several) for name, several in folders.items()}
    summaries = {
        f"summary-{name}.nc": summary(kept(results[name]), records(several)) for name, several in folders.items()
    }
    write_study(out, TITLE, page(folders, results), summaries)


if __name__ == "__main__":
    main()
