"""Checkpoints of population training: one safetensors file that knows which configuration it belongs to."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from fastspec.ops.checks import refuse
from fastspec.ops.two_layer_sgd import Packed
from fastspec.tensor_files import load_tensors, save_tensors

KIND = "train_two_layer checkpoint"


@dataclass
class State:
    """Everything that training goes on from."""

    step: int
    weights: Packed
    buffers: Packed | None
    diverged_step: Tensor  # [P] int64
    snapshots: dict[int, Packed] = field(default_factory=dict)


def digest(tensor: Tensor | None) -> str | None:
    """A hash of a tensor's shape, dtype and bytes."""
    if tensor is None:
        return None
    data = tensor.detach().cpu().contiguous()
    head = f"{list(data.shape)} {data.dtype}".encode()
    return hashlib.sha256(head + data.numpy().tobytes()).hexdigest()


def check_fingerprint(path: str | os.PathLike, theirs: Mapping[str, object], fingerprint: Mapping[str, object]) -> None:
    """Refuse a checkpoint of another configuration, naming what differs."""
    ours = json.loads(json.dumps(fingerprint))
    different = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    if different:
        got = f"{os.fspath(path)!r}, of a run with other {', '.join(different)}"
        refuse("checkpoint", got, "a checkpoint of this very configuration, or a new path")


def save_state(path: str | os.PathLike, fingerprint: Mapping[str, object], state: State) -> None:
    """Write the checkpoint; the file appears whole or not at all."""
    tensors = {"diverged_step": state.diverged_step}
    packs: dict[str, Packed | None] = {"weights": state.weights, "buffers": state.buffers}
    packs |= {f"snapshot {step}": weights for step, weights in state.snapshots.items()}
    for name, packed in packs.items():
        if packed is not None:
            tensors |= {f"{name}.{part}": t for part, t in packed._asdict().items()}
    save_tensors(path, KIND, tensors, step=str(state.step), fingerprint=json.dumps(fingerprint))


def load_state(path: str | os.PathLike, fingerprint: Mapping[str, object], device: torch.device) -> State | None:
    """The state of an earlier run of the same configuration; None when there is no such file.

    Raises ValueError for a file that is damaged or foreign, and for a checkpoint of another configuration.
    """
    if not Path(path).exists():
        return None
    tensors, metadata = load_tensors(path, KIND)
    try:
        theirs, step = json.loads(metadata["fingerprint"]), int(metadata["step"])
    except (LookupError, ValueError) as error:
        refuse(f"path {os.fspath(path)!r}", f"a damaged file ({error})", f"a fastspec {KIND} file")
    check_fingerprint(path, theirs, fingerprint)

    def packed(name: str) -> Packed:
        return Packed(*(tensors[f"{name}.{part}"].to(device) for part in Packed._fields))

    steps = {int(name.split(".")[0].split()[1]) for name in tensors if name.startswith("snapshot ")}
    return State(
        step,
        packed("weights"),
        packed("buffers") if "buffers.w1" in tensors else None,
        tensors["diverged_step"].to(device),
        {step: packed(f"snapshot {step}") for step in sorted(steps)},
    )
