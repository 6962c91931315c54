"""The documents under docs/ say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from fastspec.batchnorm import VGG19_BN
from fastspec.initialization import SCHEMES

TEXT = (Path(__file__).parents[1] / "docs" / "initialization.md").read_text()


def test_every_scheme_is_in_the_table():
    assert re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE) == list(SCHEMES)


def test_the_published_row():
    (row,) = re.findall(r"^\| (81\.25 .*) \|$", TEXT, re.MULTILINE)
    assert [float(cell) for cell in row.split("|")] == list(VGG19_BN)
