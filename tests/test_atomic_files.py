"""Files that appear whole or not at all."""

from __future__ import annotations

import os

import pytest
import torch

from fastspec.atomic_files import write_atomically
from fastspec.tensor_files import load_tensors, save_tensors


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    def fail(partial):
        partial.write_text("half of")
        raise RuntimeError("disk full")

    write_atomically(tmp_path / "file", lambda partial: partial.write_text("old"))
    with pytest.raises(RuntimeError, match="disk full"):
        write_atomically(tmp_path / "file", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_permissions_are_those_of_any_new_file(umask, tmp_path):
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "text", lambda partial: partial.write_text("a"))
        save_tensors(tmp_path / "tensors", "thing", {"a": torch.zeros(1)})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~umask}


def test_the_file_is_on_the_disk_before_it_appears(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append((tmp_path / "file").exists()))
    write_atomically(tmp_path / "file", lambda partial: partial.write_text("a"))
    assert seen == [False]


def test_tensors_that_share_memory_are_saved_as_they_look(tmp_path):
    x = torch.arange(12.0).reshape(3, 4)
    views = {"whole": x, "transposed": x.T, "row": x[1], "strided": x[:, ::2], "expanded": x[:1].expand(5, 4)}
    save_tensors(tmp_path / "file", "views", views)
    loaded, _ = load_tensors(tmp_path / "file", "views")
    assert loaded.keys() == views.keys() and all(torch.equal(loaded[name], view) for name, view in views.items())
