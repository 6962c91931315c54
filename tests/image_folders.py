"""Small files in the formats that MNIST and CIFAR-10 are published in."""

from __future__ import annotations

import struct
from pathlib import Path

import torch


def idx(values: torch.Tensor) -> bytes:
    header = bytes([0, 0, 8, values.dim()]) + struct.pack(f">{values.dim()}I", *values.shape)
    return header + bytes(values.flatten().tolist())


def random_bytes(*size: int, high: int = 256) -> torch.Tensor:
    return torch.randint(high, size, generator=torch.Generator().manual_seed(0))


def write_mnist(folder: Path) -> dict[str, torch.Tensor]:
    content = {
        "train-images-idx3-ubyte": random_bytes(7, 28, 28),
        "train-labels-idx1-ubyte": random_bytes(7, high=10),
        "t10k-images-idx3-ubyte": random_bytes(3, 28, 28),
        "t10k-labels-idx1-ubyte": random_bytes(3, high=10),
    }
    for name, values in content.items():
        (folder / name).write_bytes(idx(values))
    return content


def write_cifar10(folder: Path) -> None:
    for i, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
        record = bytes([i]) + bytes([10 * i] * 1024) + bytes([1] * 1024) + bytes(range(256)) * 4
        (folder / name).write_bytes(record * 2)
