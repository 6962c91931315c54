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


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("samples", [100, 2**17, 2**23])
@pytest.mark.parametrize("m, n", [(1, 1), (20, 200), (20, 30), (4096, 500)])
def test_blocks_activations_and_sums_fit(precision, samples, m, n):
    size, students = 8 if precision == "fp64" else 4, {"population": 10_000, "device": device_rates("H200")}
    plan = plans.candidates(samples, 100, m, n, precision, **students)[2]
    assert plan.name == "blocks" and size * plan.chunk * (m + plan.slab) <= 2 * plans.ACTIVATIONS
    spans = -(-plan.chunk // plans.span_of(samples, m))
    assert size * spans * m * plan.slab <= plans.WORKSPACE


def test_a_plan_can_be_forced():
    for name in plans.NAMES:
        with plans.force(name):
            assert plans.choose(1000, 20, 50, 500, "fp32", blocks=True).name == name
            assert plans.choose(1000, 20, 50, 500, "fp32").name == ("stream" if name == "blocks" else name)
    takes = "'recompute' or 'stream' or 'blocks'"
    with pytest.raises(ValueError, match=f"name: got 'fast'; takes {takes}"), plans.force("fast"):
        pass


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
@pytest.mark.parametrize("nodes", [m * multi for m in (5, 10, 20) for multi in (1, 2, 5, 10)])
def test_students_of_the_study_are_measured_in_blocks(nodes, precision):
    sizes = 10_000, 100, 20, nodes, precision
    plan = plans.choose(*sizes, blocks=True, activations=True, device=device_rates("H200"))
    assert plan.name == "blocks" and 32 % plan.students == 0  # 32 students of a width: no block is partly empty
    block = plans.Block.of(nodes, precision)
    assert plan.students == block.students and plan.slab == block.columns and nodes <= block.each < nodes + 4


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("nodes", [1, 3, 5, 64, 65, 1000, 1025, 5000])
def test_a_block_is_a_rule_of_a_students_width(nodes, precision):
    students, each = plans.Block.of(nodes, precision)
    size = 8 if precision == "fp64" else 4
    assert students in (1, 2, 4, 8, 16, 32) and each % 4 == 0 and 0 <= each - nodes < 4
    assert students == 1 or size * students * each <= 8192
    assert students == 32 or size * 2 * students * each > 8192
    for population in (1, 2, 500):
        names = [plan.name for plan in plans.candidates(99, 9, 3, nodes, precision, population=population)]
        assert ("blocks" in names) == (population > 1 and students > 1)


@pytest.mark.parametrize("name", ["samples", "teacher_nodes", "student_nodes"])
def test_sizes_are_checked(name):
    sizes = {"samples": 10, "inputs": 1, "teacher_nodes": 1, "student_nodes": 1, name: 0}
    with pytest.raises(ValueError, match=f"{name}: got 0"):
        plans.choose(**sizes, precision="fp32")


def test_an_unknown_precision_is_named():
    with pytest.raises(ValueError, match="precision: got 'fp16'"):
        plans.choose(10, 1, 1, 1, "fp16")
