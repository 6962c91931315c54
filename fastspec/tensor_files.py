"""Tensors in safetensors files that say what they hold, so that a foreign or damaged file is recognised."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fastspec.atomic_files import write_atomically
from fastspec.ops.checks import refuse

VERSION = "1"


def save_tensors(path: str | os.PathLike, kind: str, tensors: Mapping[str, Tensor], **metadata: str) -> None:
    """Write `tensors` to `path`, marked as the fastspec object `kind`; the file appears whole or not at all."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    def write(partial: Path) -> None:
        try:
            save_file(plain, partial, metadata=marks)
        except SafetensorError as error:
            raise OSError(str(error)) from error

    # clones: safetensors refuses tensors that share storage
    plain = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    marks = {**metadata, "fastspec": kind, "version": VERSION}
    write_atomically(path, write)


def load_tensors(path: str | os.PathLike, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata of a file written by `save_tensors` with the same `kind`.

    Raises FileNotFoundError for a missing file, and ValueError, naming the path, for a file that is truncated, is not
    safetensors, was not written by fastspec, holds another kind of object, or has another format version.
    """
    from safetensors import SafetensorError, safe_open

    name, takes = f"path {os.fspath(path)!r}", f"a fastspec {kind} file, version {VERSION}"
    if not Path(path).is_file():
        raise FileNotFoundError(f"{name}: got no such file; takes {takes}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (the file is not a mapping)
    except SafetensorError as error:
        refuse(name, f"a truncated file or one of another format ({error})", takes)
    if "fastspec" not in metadata:
        refuse(name, "a safetensors file that fastspec did not write", takes)
    if metadata["fastspec"] != kind:
        refuse(name, f"a fastspec {metadata['fastspec']} file", takes)
    if metadata.get("version") != VERSION:
        refuse(name, f"version {metadata.get('version')}", takes)
    return tensors, metadata
