"""How the CUDA kernel of `two_layer_sgd` is laid out and spread over a GPU."""

from __future__ import annotations

import pytest

from fastspec.ops.two_layer_sgd.schedule import arrange, cost, plan
from fastspec.ops.two_layer_sgd.simulation import H200, Cost, Device, Group, simulate

pytest.importorskip("fastspec._host", reason="no native code")

SHAPE = {"inputs": 100, "outputs": 50, "batch": 16, "teacher_nodes": 0, "value_bytes": 4, "momentum": False}
ICML = tuple(m * multi for m in (5, 10, 20) for multi in (1, 2, 5, 10) for _ in range(32 * 6))
A100 = Device(108, 164 * 1024, 163 * 1024, 1)


def weights(nodes: int, shape: dict) -> int:
    """Bytes of a student's weights alone."""
    return (nodes * (shape["inputs"] + 1) + (nodes + 1) * shape["outputs"]) * shape["value_bytes"]


@pytest.mark.parametrize("device", [H200, A100], ids=["H200", "A100"])
@pytest.mark.parametrize("options", [{}, {"value_bytes": 8, "momentum": True}, {"batch": 1000}, {"batch": 3}], ids=str)
def test_every_width_has_a_plan(device, options):
    shape = SHAPE | options
    for nodes in range(1, 2049):
        layout = plan(nodes, shape, device)
        ranks, copies = layout["ranks"], 2 if layout["sums"] else 1
        assert layout["shared_bytes"] <= device.block_shared_bytes
        assert layout["threads"] % 32 == 0 and 128 <= layout["threads"] <= 512
        assert ranks <= device.cluster_blocks and layout["groups"] % ranks == 0
        assert layout["most_nodes"] * ranks >= nodes and layout["part"] <= layout["wide"] <= 64
        assert layout["wide"] % layout["tile"] == 0
        assert layout["sums"] == (shape["momentum"] or shape["batch"] > layout["part"])
        if layout["placement"] == "shared":
            assert ranks * layout["shared_bytes"] >= copies * weights(nodes, shape)
            fewer = plan(nodes, shape, device._replace(cluster_blocks=max(1, ranks // 2)))
            assert ranks == 1 or fewer["placement"] != "shared" or fewer["part"] < layout["part"]
    assert plan(100, SHAPE, device)["placement"] == "shared"


def test_inputs_too_many_for_shared_memory_go_to_global_memory():
    layout = plan(50, SHAPE | {"inputs": 20000}, H200)
    assert layout["placement"] == "global" and layout["shared_bytes"] < 2000


@pytest.mark.parametrize("value_bytes", [4, 8])
def test_the_icml_grid_keeps_all_multiprocessors_busy(value_bytes):
    groups = arrange(ICML, tuple((SHAPE | {"value_bytes": value_bytes}).items()), H200)
    assert sorted(k for group in groups for k in group.students) == list(range(len(ICML)))
    assert all(ICML[k] == group.nodes for group in groups for k in group.students)
    schedule = simulate(groups, H200)
    assert schedule.utilisation >= 0.85
    assert schedule.work / 132 <= schedule.clocks  # nobody works faster than all schedulers do


def test_students_are_split_where_that_ends_sooner():
    few = arrange((200,) * 8 + (20,) * 8, tuple(SHAPE.items()), H200)
    assert {group.nodes: group.plan["ranks"] for group in few} == {200: 8, 20: 1}
    longest = [group.cost.alone for group in few]
    assert longest == sorted(longest, reverse=True)


def group(work: float, alone: float, students: int, ranks: int = 1, shared_bytes: int = 1000) -> Group:
    layout = {"ranks": ranks, "shared_bytes": shared_bytes, "threads": 128, "registers": 128}
    return Group(1, tuple(range(students)), layout, Cost(work, alone))


def test_blocks_share_a_multiprocessor():
    one = Device(1, 10**6, 10**6, 1)
    assert simulate([group(50, 100, 1)], one).clocks == 100
    assert simulate([group(50, 100, 2)], one).clocks == pytest.approx(100)  # each takes half of it
    assert simulate([group(50, 100, 4)], one).clocks == pytest.approx(200)
    assert simulate([group(50, 100, 1), group(100, 100, 1)], one).clocks == pytest.approx(150)
    assert simulate([group(50, 100, 2, shared_bytes=600_000)], one).clocks == 200  # room for one at a time


def test_clusters_wait_for_room_for_all_of_their_blocks():
    two = Device(2, 10**6, 10**6, 8)
    wide = group(100, 100, 1, ranks=2, shared_bytes=600_000)
    schedule = simulate([group(100, 100, 1, shared_bytes=600_000), wide], two)
    assert schedule.finished == (200, 200) and schedule.utilisation == 1
    with pytest.raises(ValueError, match="has no room"):
        simulate([group(100, 100, 1, ranks=4, shared_bytes=600_000)], two)


def test_costs_grow_with_the_work():
    def work(nodes: int, **options: object) -> float:
        shape = SHAPE | options
        layout = plan(nodes, shape, H200)
        return layout["ranks"] * cost(shape, layout).work

    assert work(50) < work(100) < work(200)
    assert 50 < work(100, batch=1000) / work(100) < 80
    assert 1.6 < work(100, value_bytes=8) / work(100) < 2.2
    for batch in (16, 1000):  # one clock of a multiprocessor is 128 multiplications and additions
        assert work(100, batch=batch) > 100 * batch * (2 * 100 + 3 * 50) / 128
