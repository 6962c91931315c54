"""Studies of several parts, each of runs of a command of its own."""

from __future__ import annotations

from importlib import import_module

import pytest


@pytest.mark.parametrize("study", ["ablation", "deep_gaussian", "sample_complexity"])
def test_a_folder_without_a_run_is_one_line(study, tmp_path):
    main, parts = import_module(f"studies.{study}.__main__").main, import_module(f"studies.{study}.page").PARTS
    with pytest.raises(SystemExit, match=r"^error: folder: got .*without config.json"):
        main([f"--{name}={tmp_path}" for name in parts])


def test_a_part_that_is_missing_is_named(capsys):
    with pytest.raises(SystemExit, match="2"):
        import_module("studies.ablation.__main__").main(["--single", "folder"])
    assert "--pace" in capsys.readouterr().err
