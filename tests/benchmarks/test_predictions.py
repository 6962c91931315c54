"""The cost model's table, and its choices at the ends of its range."""

from __future__ import annotations

import pytest

from benchmarks import predictions
from fastspec.ops.gpu.devices import DEVICES, device_rates
from fastspec.ops.layer_moments import plans
from fastspec.ops.precision import PRECISIONS


@pytest.mark.parametrize("op", predictions.TABLES)
def test_the_readme_has_todays_predictions(op):
    pytest.importorskip("fastspec._host", reason="no native code")
    between = predictions.readme(op).read_text().partition(predictions.BEGIN)[2].partition(predictions.END)[0]
    assert between == predictions.TABLES[op]()


@pytest.mark.parametrize("value_bytes", [4, 8])
def test_the_readme_has_todays_time_of_the_study(value_bytes):
    pytest.importorskip("fastspec._host", reason="no native code")
    assert f"{predictions.study(value_bytes):.1f} s" in predictions.readme("two_layer_sgd").read_text()


@pytest.mark.parametrize("device", DEVICES, ids=lambda rates: rates.name)
def test_narrow_layers_are_computed_again_and_wide_ones_are_streamed(device):
    assert plans.choose(2**20, 20, 50, 500, "tf32", device=device).name == "recompute"
    assert plans.choose(2**17, 4096, 4096, 32768, "tf32", device=device).name == "stream"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("m, n", [(1, 1), (20, 200), (4096, 32768), (65536, 10), (10, 65536), (65536, 65536)])
def test_a_streams_activations_fit(precision, m, n):
    size = 8 if precision == "fp64" else 4
    stream = plans.candidates(2**20, 100, m, n, precision, device=device_rates("H200"))[1]
    assert size * stream.chunk * (m + stream.slab) <= 2 * plans.ACTIVATIONS
    assert 0 < stream.slab <= n and stream.chunk > 0


def test_a_plan_can_be_forced():
    for name in plans.NAMES:
        with plans.force(name):
            assert plans.choose(1000, 20, 50, 500, "fp32").name == name
    with pytest.raises(ValueError, match="name: got 'fast'; takes 'recompute' or 'stream'"), plans.force("fast"):
        pass


@pytest.mark.parametrize("name", ["samples", "teacher_nodes", "student_nodes"])
def test_sizes_are_checked(name):
    sizes = {"samples": 10, "inputs": 1, "teacher_nodes": 1, "student_nodes": 1, name: 0}
    with pytest.raises(ValueError, match=f"{name}: got 0"):
        plans.choose(**sizes, precision="fp32")


def test_an_unknown_precision_is_named():
    with pytest.raises(ValueError, match="precision: got 'fp16'"):
        plans.choose(10, 1, 1, 1, "fp16")
