"""Moments as lines of text."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastspec.moments import CrossMoments
from fastspec.statistics import THRESHOLDS

COLUMNS = ("nodes", "score", *(f">{t:g}".replace("0.", ".") for t in THRESHOLDS), "undefined")
NOTES = (
    "nodes: teacher x student; score: mean over teacher nodes of the best correlation; >.95: teacher nodes with a",
    "student above .95; undefined: teacher + student nodes that are constant on these samples and have no correlation",
)


def layer_row(moments: CrossMoments) -> list[str]:
    """The cells of one layer pair, as `COLUMNS` name them; medians where there is a population."""
    m, n = moments.cross_scatter.shape[-2:]
    undefined = moments.undefined_nodes()
    coverage = moments.coverage()  # [*P, threshold]
    covered = coverage if moments.population is None else coverage.median(0).values
    return [
        f"{m} x {n}",
        f"{_median(moments.layer_score()):.4f}",
        *(f"{100 * share:.0f}%" for share in covered.tolist()),
        f"{int(undefined.teacher)} + {_median(undefined.student):g}",
    ]


def table(heading: str, first: str, rows: Sequence[Sequence[str]], *more: str) -> str:
    """`rows` under `first`, `COLUMNS` and `more`, right-aligned but for the first column, with a legend."""
    lines = [(first, *COLUMNS, *more), *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
    return "\n".join([heading, *text, *NOTES])


def _median(values: Tensor) -> float:
    return float(values.double().nanmedian())
