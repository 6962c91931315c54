"""Figures are legible however small a study is: nothing collapses, and no title or tick label meets its neighbour."""

from __future__ import annotations

import warnings
from itertools import pairwise

import pytest
from matplotlib.figure import Figure

from fastspec import dynamics_plots, plots
from fastspec.experiments.two_layer import TwoLayer
from fastspec.figures import amounts_axis, panels


def drawn(figure: Figure) -> Figure:
    """Laid out; a layout that fails is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()
    return figure


def assert_apart(boxes: list) -> None:
    ordered = sorted(boxes, key=lambda box: box.x0)
    assert all(left.x1 < right.x0 for left, right in pairwise(ordered))


@pytest.mark.parametrize("multi", [(1,), (1, 2), (1, 2, 5)])
def test_few_widths_of_students(multi, tmp_path):
    tiny = dict(seeds=1, steps=20, samples=50, evaluation_samples=50, inputs=4, outputs=3, measurements=3)
    run = TwoLayer(multi=multi, teacher_nodes=(2,), teacher_strength_decay=(0.0,), **tiny)
    results = run.run(tmp_path / "run").isel(teacher_nodes=0)
    for figure in (dynamics_plots.trajectories(results, 0.0), plots.l_shape(results)):
        drawn(figure)
        top = figure.axes[: len(multi)]
        assert_apart([ax.title.get_window_extent() for ax in top])
        label = figure._supxlabel.get_window_extent()
        assert label.x0 >= 0 and label.x1 <= figure.bbox.x1
        assert all(ax.get_window_extent().width > 100 for ax in top)


@pytest.mark.parametrize("amounts", [(64, 128), (200, 100), (7,), (64, 128, 256, 512, 1024, 4096, 16384)])
def test_amounts_on_a_logarithmic_axis(amounts):
    with panels(1, 1, width=1.9, height=2.0) as (figure, axes):
        ax = axes[0, 0]
        ax.plot(amounts, amounts)
        amounts_axis(ax, amounts)
        drawn(figure)
        shown = [label for label in ax.get_xticklabels(which="both") if label.get_text()]
        assert_apart([label.get_window_extent() for label in shown])
        assert {f"{min(amounts):,}", f"{max(amounts):,}"} == {shown[0].get_text(), shown[-1].get_text()}


def test_no_node_is_cut_off_an_l_shape(tmp_path):
    tiny = dict(seeds=2, steps=20, samples=50, evaluation_samples=50, inputs=4, outputs=3, measurements=3)
    run = TwoLayer(multi=(1, 2), teacher_nodes=(2,), teacher_strength_decay=(0.0,), **tiny)
    results = run.run(tmp_path / "run").isel(teacher_nodes=0)
    results["fan_out"] *= results.multi  # the widest students, drawn last, have the largest
    for ax in plots.l_shape(results).axes:
        points = [y for collection in ax.collections for _, y in collection.get_offsets()]
        assert max(points) < ax.get_ylim()[1]
