"""Readers of the files MNIST and CIFAR-10 are published in; a truncated or foreign file is refused."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from fastspec.ops.checks import refuse

UNSIGNED_BYTE = 0x08  # the element type in the third byte of an idx file
CIFAR_SHAPE = (3, 32, 32)


def read_idx(path: str | os.PathLike, rank: int) -> Tensor:
    """The array of unsigned bytes in an idx-ubyte file, gzip-compressed if its name ends in .gz; uint8, `rank` axes.

    The file is 0, 0, 8, rank, then one big-endian 32-bit size for each axis, then the bytes, the last axis fastest.
    Raises FileNotFoundError, or ValueError naming the file for one that is truncated, too long or of another format.
    """
    path, takes = Path(path), f"an idx file of unsigned bytes with {rank} axes"
    content = _content(path, takes)
    header = 4 + 4 * rank
    if content[:4] != bytes([0, 0, UNSIGNED_BYTE, rank]):
        _refuse(path, f"first bytes {content[:4].hex(' ') or '(none)'}", f"{takes} (00 00 08 {rank:02x})")
    if len(content) < header:
        _refuse(path, f"{len(content)} bytes, less than its header", takes)
    sizes = np.frombuffer(content, ">u4", count=rank, offset=4).tolist()
    if len(content) != header + math.prod(sizes):
        _refuse(path, f"{len(content)} bytes", f"{header + math.prod(sizes)} bytes, as its header says for {sizes}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[header:].reshape(sizes)


def read_cifar10(path: str | os.PathLike) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 3, 32, 32] and labels int64 [N] of one file of CIFAR-10's binary version.

    Records of 3073 bytes: the label, then 1024 bytes each of red, green and blue, row by row.
    Raises FileNotFoundError, or ValueError naming the file for one that is truncated or of another format.
    """
    path, record = Path(path), 1 + math.prod(CIFAR_SHAPE)
    takes = f"a batch of CIFAR-10's binary version, records of {record} bytes"
    content = _content(path, takes)
    if not content or len(content) % record:
        _refuse(path, f"{len(content)} bytes", takes)
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(-1, record)
    labels = records[:, 0].long()
    if labels.max() > 9:
        first = int((labels > 9).nonzero()[0])
        _refuse(path, f"label {int(labels[first])} in record {first}", f"{takes}, labels 0 to 9")
    return records[:, 1:].reshape(-1, *CIFAR_SHAPE), labels


def _content(path: Path, takes: str) -> bytes:
    if not path.is_file():
        refuse(f"file {str(path)!r}", "no such file", takes, FileNotFoundError)
    content = path.read_bytes()
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        _refuse(path, f"damaged or truncated gzip data ({error})", takes)


def _refuse(path: Path, got: str, takes: str) -> NoReturn:
    refuse(f"file {str(path)!r}", got, takes)
