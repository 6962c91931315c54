"""What every figure shares: style, grids of panels, looks of curves, axes of steps, legends."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by every kind of colour vision; one for each multiple, from the narrowest student.
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FEW = 12  # measurements, up to which each has a marker
STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "axes.edgecolor": "#808080",
    "axes.linewidth": 0.7,
    "xtick.color": "#404040",
    "ytick.color": "#404040",
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "savefig.dpi": 160,
}


@contextmanager
def panels(rows: int, columns: int, *, width: float, height: float, **shared: Any) -> Iterator[tuple[Figure, Any]]:
    """A grid of axes [rows, columns] in this module's style, without a window; width and height of one in inches."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context(STYLE):
        engine = ConstrainedLayoutEngine(w_pad=0.09)  # inches; tick labels of neighbours stay apart
        figure = Figure(figsize=(width * columns + 0.8, height * rows + 0.6), layout=engine)
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(rows, columns, squeeze=False, **shared)


@contextmanager
def panel_each(
    values: Sequence[Any] | np.ndarray, *, columns: int = 3, width: float = 3.3, height: float = 2.6, **shared: Any
) -> Iterator[tuple[Figure, list[tuple[Any, Axes]]]]:
    """One panel for each value, in rows of at most `columns`: the figure, and (value, axes) pairs."""
    columns = min(columns, len(values))
    rows = -(-len(values) // columns)
    with panels(rows, columns, width=width, height=height, **shared) as (figure, axes):
        for ax in axes.ravel()[len(values) :]:
            ax.set_visible(False)
        yield figure, list(zip(values, axes.ravel()[: len(values)], strict=True))


def look(i: int, measurements: int = 0) -> dict[str, Any]:
    """Colour and marker of the i-th kind of student; no markers where there are many measurements."""
    marker = MARKERS[i % len(MARKERS)] if measurements <= FEW else None
    return {"color": PALETTE[i % len(PALETTE)], "marker": marker}


def legend(figure: Figure, ax: Axes, title: str) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, title=title, loc="outside right center")


def corner(ax: Axes, text: str) -> None:
    ax.text(0.04, 0.97, text, transform=ax.transAxes, va="top", color="#404040", fontsize=8)


def threshold_line(ax: Axes, value: float, *, vertical: bool = False) -> None:
    line = ax.axvline if vertical else ax.axhline
    line(value, color="#404040", linewidth=0.7, linestyle=(0, (4, 3)))


def amounts_axis(ax: Axes, amounts: Sequence[int] | np.ndarray) -> None:
    """A logarithmic axis of numbers of things, with ticks at the amounts themselves: the least, the
    largest, and others as far as there is room."""
    from matplotlib.ticker import FixedLocator, NullLocator

    ordered = sorted({int(amount) for amount in amounts})
    lowest, ticks = ordered[0], ordered[-1:]
    room = math.log(ticks[0] / lowest) / 3.5
    for amount in reversed(ordered[:-1]):
        if amount == lowest or min(math.log(ticks[-1] / amount), math.log(amount / lowest)) >= room:
            ticks.append(amount)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ax.xaxis.set_minor_locator(NullLocator())


def integer_axis(ax: Axes, count: int) -> None:
    ax.set_xticks(range(0, count, -(-count // 6)))


def times(results: xr.Dataset) -> np.ndarray:
    """When measurements were made: in epochs where the results know them, else in steps."""
    return np.asarray(results.epoch if "epoch" in results.coords else results.step)


def unit(results: xr.Dataset, steps: str = "SGD steps") -> str:
    """Of `times`."""
    return "epochs" if "epoch" in results.coords else steps


def at(results: xr.Dataset, step: int) -> str:
    """A measured step in words."""
    if "epoch" not in results.coords:
        return f"{step:,} steps"
    epoch = float(results.epoch.sel(step=step))
    return f"{epoch:g} epoch" + "s" * (epoch != 1)


def early_step(results: xr.Dataset, fraction: float) -> int:
    """The measured step nearest to a fraction of all steps."""
    steps = results.step.values
    return int(steps[np.abs(steps - fraction * steps[-1]).argmin()])


def time_axis(ax: Axes, results: xr.Dataset) -> None:
    """Times on a logarithmic axis that has room for 0."""
    when = times(results)
    first, last = float(when[1]), float(when[-1])
    powers = [10.0**k for k in range(-6, 10) if 2 * first <= 10.0**k <= last]
    ax.set_xscale("symlog", linthresh=first, linscale=0.3)
    ax.set_xticks([0, *powers], [f"{tick:,g}" for tick in (0, *powers)])
    ax.set_xticks([], minor=True)
    ax.set_xlim(0, last)
