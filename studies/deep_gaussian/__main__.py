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
from studies.deep_gaussian.page import PARTS, page
from studies.deep_gaussian.summary import joined, summary
from studies.files import load_run

TITLE = "Deep students of separated teachers, reproduced"
DPI = 80


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser("python -m studies.deep_gaussian", description=__doc__)
    for name, part in PARTS.items():
        about = f"folders of runs of `{part.command}`, one or more"
        parser.add_argument(f"--{name}", type=Path, nargs="+", required=True, metavar="DIR", dest=name, help=about)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where to write (default: here)")
    given = parser.parse_args(arguments)
    try:
        write({name: getattr(given, name) for name in PARTS}, given.out)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def write(runs: dict[str, list[Path]], out: Path) -> None:
    """Write the study's files into `out` from the folders of runs, by preset."""
    folders = {name: [load_run(path, "deep") for path in paths] for name, paths in runs.items()}
    results = {name: joined(several) for name, several in folders.items()}
    blocks = page(folders, results)
    out.mkdir(parents=True, exist_ok=True)
    write_figures(out, blocks, DPI)
    write_text(out / "README.md", markdown(TITLE, blocks))
    for name, several in folders.items():
        content = netcdf(summary(results[name], several))
        write_atomically(out / f"summary-{name}.nc", partial(Path.write_bytes, data=content))


if __name__ == "__main__":
    main()
