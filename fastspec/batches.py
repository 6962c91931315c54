"""Any kind of data as checked batches: tensors, DataLoaders, and iterables of tensors, tuples, lists or dicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastspec.ops.checks import check_finite, refuse
from fastspec.progress import Progress

Data: TypeAlias = "Tensor | Iterable[Any]"
NONE = 2**62  # the number of no batch
TAKES = "a tensor [samples, ...], a DataLoader, or an iterable of batches whose first entry is the input"


class Batch(NamedTuple):
    """Inputs, and the place in the data that messages name."""

    x: Tensor  # [samples, ...]
    place: str


def read(
    data: Data,
    samples: int,
    check: Callable[[str, Tensor], None],
    progress: bool | None,
    device: torch.device | None = None,
) -> Iterator[Batch]:
    """The batches of `data` in their order, each of at least one and at most `samples` samples.

    device: of the networks; inputs on the CPU are moved there, to a GPU without a wait.
    check: called with the place and the inputs of every batch, for what only the networks know.
    Raises ValueError or TypeError for data of another kind, NaN and infinity (of inputs on a GPU at the end), and data
    without a single sample.
    """
    seen, finite = 0, _Finite()
    stays = isinstance(data, (Tensor, DataLoader))  # others may write the next batch over the last
    with Progress("measuring", *_length(data), progress) as bar:
        for number, entry in enumerate(_entries(data, samples)):
            place = f"data, batch {number}"
            x = _input(place, entry)
            for part in x.split(samples) if len(x) else ():
                part = _moved(part, device, stays)
                check(place, part)
                finite.check(number, place, part)
                yield Batch(part, place)
            seen += len(x)
            bar.advance(len(x) if bar.unit == "samples" else 1)
    if not seen:
        refuse("data", "0 samples", "at least one sample")
    finite.finish()


class _Finite:
    """Refuses inputs that are NaN or infinite; on a GPU at the end, as nothing is to wait for it."""

    def __init__(self) -> None:
        self.first: Tensor | None = None  # [] int64 on the GPU: the number of the first such batch

    def check(self, number: int, place: str, x: Tensor) -> None:
        if not x.is_floating_point() or not x.numel():
            return
        if not waits(x.device):
            check_finite(place, x)
            return
        if self.first is None:
            self.first = torch.full((), NONE, device=x.device)
        low, high = x.aminmax()  # NaN if there is one
        spoilt = (0 * low + 0 * high).isnan()
        self.first.masked_fill_(spoilt & (self.first == NONE), number)

    def finish(self) -> None:
        if self.first is not None and self.first != NONE:
            refuse(f"data, batch {int(self.first)}", "NaN or infinite values", "finite values")


def _moved(x: Tensor, device: torch.device | None, stays: bool) -> Tensor:
    """Inputs that are on the CPU on `device`; to a GPU from pinned memory, which nobody else may write to."""
    if device is None or x.device.type != "cpu" or device.type == "cpu":
        return x
    if waits(device) and not (stays and x.is_pinned()):
        x = _pinned_copy(x)
    return x.to(device, non_blocking=True)


def _pinned_copy(x: Tensor) -> Tensor:
    return torch.empty_like(x, pin_memory=True).copy_(x)


def waits(device: torch.device) -> bool:
    """Whether looking at a value makes the host wait for a device that works on its own."""
    return device.type == "cuda"


def gather(batches: Iterable[Batch], samples: int) -> Iterator[Batch]:
    """The same samples in batches of exactly `samples`, but for the last; what waits is copied, as loaders may reuse
    their buffers."""
    waiting: list[Tensor] = []
    held, first = 0, ""
    place = first
    for x, place in batches:
        first = first if held else place
        while len(x):
            part, x = x[: samples - held], x[samples - held :]
            held += len(part)
            if held < samples:
                waiting.append(part.clone())
                continue
            yield Batch(torch.cat([*waiting, part]) if waiting else part, _span(first, place))
            waiting, held, first = [], 0, place
    if waiting:
        yield Batch(torch.cat(waiting) if len(waiting) > 1 else waiting[0], _span(first, place))


def _span(first: str, last: str) -> str:
    return last if first == last else f"{first} to {last.rpartition(' ')[2]}"


def _entries(data: Data, samples: int) -> Iterable[Any]:
    if isinstance(data, Tensor):
        if data.dim() == 0:
            refuse("data", "a single number", TAKES)
        return data.split(samples)
    if isinstance(data, Dataset):
        refuse("data", f"a {type(data).__name__}, which has samples but no batches", "a DataLoader of it", TypeError)
    if isinstance(data, (str, bytes, Mapping)) or not isinstance(data, Iterable) or hasattr(data, "__array__"):
        refuse("data", type(data).__name__, TAKES, TypeError)
    return data


def _length(data: Data) -> tuple[int | None, str]:
    """How much data there is, if it says so, and in which unit."""
    if isinstance(data, Tensor):
        return len(data) if data.dim() else 0, "samples"
    try:
        return len(data), "batches"  # type: ignore[arg-type]
    except TypeError:
        return None, "samples"


def _input(place: str, entry: Any) -> Tensor:
    if isinstance(entry, Mapping):
        entry = next(iter(entry.values()), None)
    elif isinstance(entry, (tuple, list)):
        entry = entry[0] if entry else None
    if not isinstance(entry, Tensor):
        refuse(place, type(entry).__name__, "a tensor, or a tuple, list or dict whose first entry is one", TypeError)
    if entry.dim() == 0:
        refuse(place, "a single number", "a tensor [samples, ...]")
    return entry
