"""What every study reads and writes."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from fastspec.atomic_files import write_atomically
from fastspec.experiments.experiment import Experiment
from fastspec.experiments.results import RunFolder, netcdf
from fastspec.ops.checks import refuse
from fastspec.report import Block, Text, markdown, provenance_table, write_figures, write_text

DPI = 80  # of figures that are kept in git


def answer(
    parser: ArgumentParser, folder: Path, write: Callable[[Namespace], None], arguments: Sequence[str] | None
) -> None:
    """Parse the command line of a study, --out added to it, and write; an error is one line.

    folder: the study's own, where it is written by default.
    """
    parser.add_argument("--out", type=Path, default=folder, help="where to write (default: here)")
    given = parser.parse_args(arguments)
    try:
        write(given)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def answer_parts(
    parser: ArgumentParser,
    folder: Path,
    parts: Mapping[str, str],
    write: Callable[[Mapping[str, Sequence[Path]], Path], None],
    arguments: Sequence[str] | None,
) -> None:
    """`answer` of a study of several parts, each of runs of a command of its own; write(folders by part, out)."""
    for name, command in parts.items():
        about = f"folders of runs of `{command}`, one or more"
        parser.add_argument(f"--{name}", type=Path, nargs="+", required=True, metavar="DIR", dest=name, help=about)
    answer(parser, folder, lambda given: write({name: getattr(given, name) for name in parts}, given.out), arguments)


def load_run(path: Path, experiment: str) -> RunFolder:
    """The folder of a finished run; ValueError for one of another experiment."""
    folder = RunFolder.load(path)
    if folder.experiment != experiment:
        refuse("folder", f"{str(path)!r}, a run of {folder.experiment!r}", f"a run of {experiment!r}")
    return folder


def joined(folders: Sequence[RunFolder], axes: Collection[str] = ()) -> xr.Dataset:
    """The results of runs of one configuration but for the teacher's seed, whose students are told apart by it, or but
    for one of the options `axes`, along which they are joined."""
    results = [folder.results() for folder in folders]
    if len(folders) == 1:
        return results[0]
    first = folders[0].config
    different = {key for folder in folders for key in first if folder.config[key] != first[key]}
    takes = ("teacher_seed", *axes)
    if len(different) != 1 or not different <= set(takes):
        refuse(
            "folders", f"runs that differ in {', '.join(sorted(different)) or 'nothing'}", f"in {' or '.join(takes)}"
        )
    (axis,) = different
    if axis == "teacher_seed":
        axis, each = "seed", first["seeds"]
        results = [r.assign_coords(seed=range(i * each, (i + 1) * each)) for i, r in enumerate(results)]
    return xr.concat(results, axis, data_vars="different", coords="minimal", compat="equals", join="exact")


def records(folders: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """Configuration, provenance and timings of runs, for the summary of their results."""
    return [{"config": f.config, "provenance": f.provenance, "wall seconds": f.timings()} for f in folders]


def made_with(folders: Sequence[RunFolder], command: str) -> list[Block]:
    """The command of several runs, the time they took, and where the first is from."""
    took = sum(seconds for f in folders for parts in f.timings().values() for seconds in parts.values())
    runs = "one run" if len(folders) == 1 else f"{len(folders)} runs"
    text = f"`{command}`, {runs}, {took / 60:.1f} minutes in all, on busy cores."
    return [Text(text), provenance_table(folders[0].provenance)]


def summary(results: xr.Dataset, record: Any) -> xr.Dataset:
    """Results small enough for git: float64 as float32, and a record of where they are from, as JSON in the attribute
    `record`."""
    small = results.map(lambda array: array.astype(np.float32) if array.dtype == np.float64 else array)
    return small.assign_attrs(fastspec="summary", record=json.dumps(record))


def write_study(out: Path, title: str, blocks: Sequence[Block], summaries: Mapping[str, xr.Dataset]) -> None:
    """Write figures/ and README.md from the blocks of a page, and each summary under its name, into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    write_figures(out, blocks, DPI)
    write_text(out / "README.md", markdown(title, blocks))
    for name, arrays in summaries.items():
        write_atomically(out / name, partial(Path.write_bytes, data=netcdf(arrays)))


def command(start: str, config: Mapping[str, Any], experiment: Experiment) -> str:
    """The command line that asks for a run's configuration: how it starts, then what differs from `experiment`."""
    parts = [start]
    for option, value in config.items():
        default = getattr(experiment, option)
        if value != (list(default) if isinstance(default, tuple) else default):
            name = "--" + option.replace("_", "-")
            given = value if isinstance(value, list) else [value]
            parts.append(name if value is True else " ".join([name, *map(str, given)]))
    return " ".join(parts)
