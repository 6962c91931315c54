"""Run folders: what a run was asked for, what it found, and which parts of it are finished.

config.json           the experiment's dataclass and its provenance
results.nc            labelled arrays (xarray, netCDF-4)
weights.safetensors   teachers and students
timings.json          wall seconds of the parts of a run, where it takes them
figures/, report.*    drawn from the files above
parts/                finished parts and checkpoints of a run under way
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from fastspec.atomic_files import is_partial, write_atomically
from fastspec.experiments.provenance import provenance
from fastspec.ops.checks import refuse
from fastspec.tensor_files import save_tensors

if TYPE_CHECKING:
    import xarray as xr

VERSION = "1"
ENGINE: Literal["h5netcdf"] = "h5netcdf"
SMALL = 1000  # elements; arrays up to here take less room uncompressed, in one piece
CONFIG, RESULTS, WEIGHTS, TIMINGS, PARTS = "config.json", "results.nc", "weights.safetensors", "timings.json", "parts"
OWNED = (CONFIG, RESULTS, WEIGHTS, TIMINGS, PARTS, "figures", "report.md", "report.html")  # what --overwrite removes


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path
    experiment: str
    config: dict[str, Any]
    provenance: dict[str, Any]

    @classmethod
    def start(
        cls, path: str | os.PathLike, experiment: str, config: Mapping[str, Any], *, overwrite: bool = False
    ) -> RunFolder:
        """A new run's folder, or that of an earlier run of the same experiment and configuration, to go on with.

        Raises ValueError for the folder of another run (unless `overwrite`, which empties it of that run's files), and
        for a folder of anything else.
        """
        root, asked = Path(path), json.loads(json.dumps(dict(config)))
        if (root / CONFIG).exists():
            if not overwrite:
                found = cls.load(root)
                if found.experiment == experiment and found.config == asked:
                    return found
                got = f"{str(root)!r}, which holds a run of {_difference(found, experiment, asked)}"
                refuse("out", got, "a new folder, that of a run with this configuration, or --overwrite")
            _claimed(root / CONFIG)
            for name in OWNED:
                _remove(root / name)
        elif root.is_dir():
            if not all(map(is_partial, root.iterdir())):
                refuse("out", f"{str(root)!r}, a folder with other files", "a new or empty folder, or that of a run")
            _remove_partial(root)  # of a run that was killed at its first file
        elif root.exists() and not root.is_dir():
            refuse("out", f"{str(root)!r}, a file", "a folder")
        folder = cls(root, experiment, asked, provenance(asked.get("dtype")))
        folder.write_config()
        return folder

    @classmethod
    def load(cls, path: str | os.PathLike) -> RunFolder:
        """The folder of an earlier run; ValueError or FileNotFoundError, naming the file, for anything else."""
        file = Path(path) / CONFIG
        if not file.is_file():
            refuse("folder", f"{str(path)!r}, without {CONFIG}", "the folder of a run", FileNotFoundError)
        data = _claimed(file)
        try:
            return cls(Path(path), str(data["experiment"]), dict(data["config"]), dict(data["provenance"]))
        except (LookupError, TypeError, ValueError) as error:
            refuse(f"file {str(file)!r}", f"no readable configuration ({error!r})", f"the {CONFIG} of a run")

    def write_config(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        data = {"fastspec": "run", "version": VERSION, "experiment": self.experiment}
        text = json.dumps(data | {"config": self.config, "provenance": self.provenance}, indent=2) + "\n"
        write_atomically(self.path / CONFIG, lambda partial: partial.write_text(text))

    @property
    def finished(self) -> bool:
        return (self.path / RESULTS).is_file()

    def part(self, name: str) -> Path:
        """Where a part of the unfinished run is kept."""
        path = self.path / PARTS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def finish(self, results: xr.Dataset, weights: Mapping[str, Tensor]) -> xr.Dataset:
        """Save weights and results, in this order, and forget the parts: a folder with results is a finished run.

        Returns the results as they are saved.
        """
        save_tensors(self.path / WEIGHTS, "weights of a run", weights, experiment=self.experiment)
        marked = results.assign_attrs(fastspec="results", version=VERSION, experiment=self.experiment)
        content = netcdf(marked)
        write_atomically(self.path / RESULTS, lambda partial: partial.write_bytes(content))
        _remove(self.path / PARTS)
        _remove_partial(self.path)
        return marked

    def results(self) -> xr.Dataset:
        """The saved results; ValueError or FileNotFoundError, naming the file, where they cannot be read."""
        import xarray

        file = self.path / RESULTS
        if not file.is_file():
            refuse("folder", f"{str(self.path)!r}, without {RESULTS}", "a finished run", FileNotFoundError)
        name, takes = f"file {str(file)!r}", f"the {RESULTS} of a {self.experiment} run, version {VERSION}"
        try:
            results = xarray.load_dataset(file, engine=ENGINE)
        except (OSError, ValueError, LookupError, TypeError, RuntimeError, AttributeError):
            refuse(name, "a truncated or foreign file", takes)
        marks = {key: results.attrs.get(key) for key in ("fastspec", "version", "experiment")}
        if marks != {"fastspec": "results", "version": VERSION, "experiment": self.experiment}:
            refuse(name, f"a netCDF file marked {marks}", takes)
        return results

    def timings(self) -> dict[str, dict[str, float]]:
        """Wall seconds {job: {activity: seconds}} over all interruptions; empty where a run takes none."""
        file = self.path / TIMINGS
        try:
            return dict(json.loads(file.read_text())) if file.is_file() else {}
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError, ValueError) as error:
            refuse(f"file {str(file)!r}", f"a truncated or foreign file ({error})", f"the {TIMINGS} of a run")


def netcdf(dataset: xr.Dataset) -> bytes:
    """A data set as the bytes of a netCDF-4 file. HDF5 writes them to memory: it may crash where a disk is full."""
    import h5netcdf
    from xarray.backends import H5NetCDFStore

    packed = {name: {"zlib": True} for name, array in dataset.items() if array.size > SMALL}
    buffer = io.BytesIO()
    with h5netcdf.File(buffer, "w") as file:
        dataset.dump_to_store(H5NetCDFStore(file), encoding=packed)
    return buffer.getvalue()


def _claimed(file: Path) -> dict[str, Any]:
    """The JSON object of a run's configuration file."""
    name, takes = f"file {str(file)!r}", f"the {CONFIG} of a run, version {VERSION}"
    try:
        data = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        refuse(name, f"a truncated or foreign file ({error})", takes)
    if not isinstance(data, dict) or data.get("fastspec") != "run" or data.get("version") != VERSION:
        refuse(name, "a file that this version of fastspec did not write", takes)
    return data


def _difference(found: RunFolder, experiment: str, asked: dict[str, Any]) -> str:
    """How an earlier run differs from the one asked for."""
    if found.experiment != experiment:
        return f"{found.experiment!r}"
    theirs, ours = _flat(found.config), _flat(asked)
    keys = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
    return ", ".join(f"{key} = {theirs.get(key)} (now {ours.get(key)})" for key in keys)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options under their names, those of parts as `part.name`."""
    options: dict[str, Any] = {}
    for key, value in config.items():
        options |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return options


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _remove_partial(folder: Path) -> None:
    """Remove the files that killed processes have left half-written."""
    for path in filter(is_partial, list(folder.iterdir())):
        path.unlink()
