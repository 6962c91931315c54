"""The documents under docs/ say what the code does, and their code runs, on smaller problems."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

from fastspec.batchnorm import VGG19_BN
from fastspec.initialization import SCHEMES

TEXT = (Path(__file__).parents[1] / "docs" / "initialization.md").read_text()


def test_every_scheme_is_in_the_table():
    assert re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE) == list(SCHEMES)


def test_the_published_row():
    (row,) = re.findall(r"^\| (81\.25 .*) \|$", TEXT, re.MULTILINE)
    assert [float(cell) for cell in row.split("|")] == list(VGG19_BN)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(4, 4), nn.ReLU())


class Resnet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])


def test_the_code(capsys):
    code = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
    for long, short in (("width=(100, 1000)", "width=(10, 20)"), ("gaussian(2000, 500)", "gaussian(50, 8)")):
        assert long in code
        code = code.replace(long, short)
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    draw = torch.Generator().manual_seed(0)
    names = {
        "network": network,
        "loader": torch.randn(20, 6, generator=draw).split(5),
        "resnet": Resnet(),
        "lr": 0.02,
        "d": 30,
    }
    names |= {"teacher_w1": torch.eye(2, 30), "student_w1": torch.randn(2, 30, generator=draw) / 10}
    names |= {"teacher_top": torch.ones(1, 2), "student_top": torch.ones(1, 2)}
    exec(compile(code, "docs/initialization.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "verdict" in printed and "norms over 20 samples" in printed
    assert names["solution"].loss.shape == (100,) and names["solution"].loss[-1] < names["solution"].loss[0]
