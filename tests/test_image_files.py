"""MNIST and CIFAR-10 read from small files in their published formats, and damaged ones refused."""

from __future__ import annotations

import gzip

import pytest
import torch
from image_folders import idx, random_bytes, write_cifar10, write_mnist

from fastspec.data import cifar10, mnist
from fastspec.image_files import read_cifar10, read_idx


def test_mnist(tmp_path):
    content = write_mnist(tmp_path)
    data = mnist(tmp_path)
    assert data.train.x.shape == (7, 784)
    assert data.train.y.equal(content["train-labels-idx1-ubyte"])
    pixels = content["t10k-images-idx3-ubyte"]
    torch.testing.assert_close(data.held_out.x.view(3, 28, 28), pixels / 127.5 - 1)
    assert mnist(tmp_path, flat=False).train.x.shape == (7, 1, 28, 28)


def test_mnist_compressed(tmp_path):
    write_mnist(tmp_path)
    plain = mnist(tmp_path)
    for path in list(tmp_path.iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert mnist(tmp_path).train.x.equal(plain.train.x)


def test_cifar10(tmp_path):
    write_cifar10(tmp_path)
    data = cifar10(tmp_path)
    assert data.train.y.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert data.held_out.y.tolist() == [5, 5]
    red, green, blue = data.held_out.x[0]
    assert data.train.x.shape == (10, 3, 32, 32)
    torch.testing.assert_close(red, torch.full((32, 32), (50 / 255 - 0.4914) / 0.2023))
    torch.testing.assert_close(green, torch.full((32, 32), (1 / 255 - 0.4822) / 0.1994))
    torch.testing.assert_close(blue[1, :3], (torch.tensor([32.0, 33.0, 34.0]) / 255 - 0.4465) / 0.2010)
    assert cifar10(tmp_path, flat=True).train.x.shape == (10, 3072)


WHOLE = idx(random_bytes(2, 3, 3))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a", WHOLE[:-1], r"file '.*a': got 33 bytes; takes 34 bytes, as its header says for \[2, 3, 3\]"),
        ("a", WHOLE + b"x", "got 35 bytes"),
        ("a", WHOLE[:10], "got 10 bytes, less than its header"),
        ("a", b"", r"got first bytes \(none\); takes an idx file of unsigned bytes with 3 axes"),
        ("a", bytes([0, 0, 8, 1]) + WHOLE[4:], "got first bytes 00 00 08 01; .*00 00 08 03"),
        ("a", bytes([0, 0, 13, 3]) + WHOLE[4:], "got first bytes 00 00 0d 03"),
        ("a", b"<html>", "got first bytes 3c 68 74 6d"),
        ("a", gzip.compress(WHOLE, mtime=0), "got first bytes 1f 8b"),
        ("a.gz", gzip.compress(WHOLE, mtime=0)[:-12], r"a\.gz': got damaged or truncated gzip data"),
        ("a.gz", WHOLE, "got damaged or truncated gzip data"),
        ("a.gz", gzip.compress(WHOLE[:-1], mtime=0), "got 33 bytes"),
    ],
)
def test_damaged_idx_files(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / name, 3)


def test_whole_idx_file(tmp_path):
    (tmp_path / "a").write_bytes(WHOLE)
    assert read_idx(tmp_path / "a", 3).equal(random_bytes(2, 3, 3).to(torch.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bytes(3072), r"file '.*b': got 3072 bytes; takes a batch of CIFAR-10's binary version, records of 3073 bytes"),
        (b"", "got 0 bytes"),
        (bytes(3073) + bytes([10]) + bytes(3072), "got label 10 in record 1"),
    ],
)
def test_damaged_cifar_files(content, message, tmp_path):
    (tmp_path / "b").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_cifar10(tmp_path / "b")


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("train-labels-idx1-ubyte", random_bytes(6, high=10), "got 6 labels; takes 7, the images of train-images"),
        ("train-labels-idx1-ubyte", torch.full((7,), 10), "train-labels.*got a label 10"),
        ("t10k-images-idx3-ubyte", random_bytes(3, 27, 28), r"t10k-images.*images of \[27, 28\] pixels"),
    ],
)
def test_mismatched_mnist_files(name, values, message, tmp_path):
    write_mnist(tmp_path)
    (tmp_path / name).write_bytes(idx(values))
    with pytest.raises(ValueError, match=message):
        mnist(tmp_path)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"got no train-images-idx3-ubyte or train-images-idx3-ubyte\.gz"):
        mnist(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"data_batch_1\.bin': got no such file"):
        cifar10(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(b"\x80\x02")
    with pytest.raises(FileNotFoundError, match=r"Python version, pickles; takes the binary version"):
        cifar10(tmp_path)
