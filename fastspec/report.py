"""Reports of runs: what was found, in tables and figures, as Markdown and as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastspec.atomic_files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    summary: bool = True  # shown at the end of a run as well, and open on the page


@dataclass(frozen=True)
class Picture:
    name: str
    caption: str
    figure: Figure


Block = Heading | Text | Table | Picture


def provenance_table(provenance: Mapping[str, Any]) -> Table:
    """Where a run comes from."""
    rows = [[key, "unknown" if value is None else str(value)] for key, value in provenance.items()]
    return Table("Made with", ("what", "value"), rows, summary=False)


def timings_table(timings: Mapping[str, Mapping[str, float]]) -> Table:
    """How long the jobs of a run took, wall seconds {job: {activity: seconds}}."""
    activities = list(dict.fromkeys(name for parts in timings.values() for name in parts))
    sums = {name: sum(parts.get(name, 0.0) for parts in timings.values()) for name in activities}
    rows = [
        [job, *(f"{parts.get(name, 0.0):.1f}" for name in activities)]
        for job, parts in [*timings.items(), ("all", sums)]
    ]
    return Table("Wall seconds", ("job", *activities), rows, summary=False)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def write_report(folder: str | os.PathLike, title: str, blocks: Iterable[Block]) -> None:
    """Write figures/*.png, report.md and report.html into `folder`."""
    root, blocks = Path(folder), list(blocks)
    write_figures(root, blocks)
    for name, text in (("report.md", markdown(title, blocks)), ("report.html", _html(title, blocks, root))):
        write_text(root / name, text)


def write_figures(folder: Path, blocks: Iterable[Block], dpi: int = 160) -> None:
    """Write the figures as figures/*.png into `folder`."""
    (folder / "figures").mkdir(exist_ok=True)
    for block in blocks:
        if isinstance(block, Picture):
            path = folder / "figures" / f"{block.name}.png"
            write_atomically(path, partial(block.figure.savefig, format="png", dpi=dpi))


def write_text(path: Path, text: str) -> None:
    write_atomically(path, partial(Path.write_text, data=text, encoding="utf-8"))


def markdown(title: str, blocks: Iterable[Block]) -> str:
    """The blocks as Markdown, with figures in the folder figures/."""
    parts = [f"# {title}"]
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"## {block.text}")
        elif isinstance(block, Text):
            parts.append(block.text)
        elif isinstance(block, Picture):
            parts.append(f"![{block.caption}](figures/{block.name}.png)\n\n*{block.caption}*")
        else:
            rows = [block.columns, ["---"] * len(block.columns), *block.rows]
            parts.append(f"**{block.title}**\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join(parts) + "\n"


CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #202020; max-width: 62em; margin: 2em auto; padding: 0 1em; }
h2 { margin-top: 2em; }
img { max-width: 100%; }
figure { margin: 1.5em 0; }
figcaption, caption { color: #505050; text-align: left; padding-bottom: .3em; }
table { border-collapse: collapse; margin: 1.5em 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2em .9em .2em 0; text-align: right; border-bottom: 1px solid #e4e4e4; }
th:first-child, td:first-child { text-align: left; }
"""


def _html(title: str, blocks: Iterable[Block], root: Path) -> str:
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"<h2>{html.escape(block.text)}</h2>")
        elif isinstance(block, Text):
            parts.append(f"<p>{html.escape(block.text)}</p>")
        elif isinstance(block, Picture):
            data = base64.b64encode((root / "figures" / f"{block.name}.png").read_bytes()).decode()
            caption = html.escape(block.caption)
            image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
            parts.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
        else:
            inner = "\n".join(_row("td" if i else "th", row) for i, row in enumerate((block.columns, *block.rows)))
            name = html.escape(block.title)
            if block.summary:
                parts.append(f"<table><caption>{name}</caption>\n{inner}</table>")
            else:
                parts.append(f"<details><summary>{name}</summary><table>\n{inner}</table></details>")
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{CSS}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _row(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
