"""The tables of a report on the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fastspec.report import Block, Heading, Table


def print_summary(blocks: Iterable[Block], folder: str | Path) -> None:
    """Print the tables that make the summary, under their headings, and where the report is."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(highlight=False)
    heading = ""
    for block in blocks:
        if isinstance(block, Heading):
            heading = block.text
        if isinstance(block, Table) and block.summary:
            if heading:
                console.print(Text(heading, style="bold underline"))
                heading = ""
            table = RichTable(title=block.title, title_justify="left", title_style="italic", box=box.SIMPLE_HEAD)
            for i, column in enumerate(block.columns):
                table.add_column(column, justify="right" if i else "left")
            for row in block.rows:
                table.add_row(*row)
            console.print(table)
    root = Path(folder).resolve()
    console.print(Text(f"Report: {root / 'report.html'}"), soft_wrap=True)
    console.print(Text(f"Folder: {root}"), soft_wrap=True)
