"""What every study reads and writes."""

from __future__ import annotations

from pathlib import Path

from fastspec.experiments.results import RunFolder
from fastspec.ops.checks import refuse


def load_run(path: Path, experiment: str) -> RunFolder:
    """The folder of a finished run; ValueError for one of another experiment."""
    folder = RunFolder.load(path)
    if folder.experiment != experiment:
        refuse("folder", f"{str(path)!r}, a run of {folder.experiment!r}", f"a run of {experiment!r}")
    return folder
