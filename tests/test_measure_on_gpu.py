"""How `measure` differs on a GPU, seen without one: late checks, chunks, and inputs that are moved."""

from __future__ import annotations

import sys
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

import fastspec as fs
from fastspec import batches, layerwise
from fastspec.batches import read

GPU = torch.device("meta")  # in the place of one


@pytest.fixture
def late(monkeypatch):
    """The host waits for no value before the end of a pass, as on a GPU."""
    for name in ("batches", "layerwise", "running", "measure"):
        monkeypatch.setattr(sys.modules[f"fastspec.{name}"], "waits", lambda device: True)


@pytest.fixture
def networks():
    teacher = fs.teachers.separated([6, 5, 4, 3], seed=0)
    return teacher, fs.networks.student_like(teacher, multi=2, seed=1), fs.data.gaussian(700, 6, std=2.0, seed=2)


def module(width, **more):
    """Any module, with layers of its own after the ReLU."""
    layers = {"low": nn.Linear(6, width), "relu": nn.ReLU(), **more, "top": nn.Linear(width, 3)}
    network = nn.Sequential()
    for name, layer in layers.items():
        network.add_module(name, layer)
    return network


class NaNInCall(nn.Module):
    """The input, but NaN in one call."""

    def __init__(self, call):
        super().__init__()
        self.left = call

    def forward(self, x):
        self.left -= 1
        return x if self.left else x * torch.nan


@pytest.mark.parametrize("own", [True, False], ids=["MLPs", "modules"])
def test_late_checks_change_no_result(networks, own, request):
    pair = networks[:2] if own else (module(5), module(9))
    now = fs.measure(*pair, networks[2], batch_size=100)
    request.getfixturevalue("late")
    later = fs.measure(*pair, networks[2], batch_size=100)
    assert torch.allclose(later.loss, now.loss, rtol=1e-6, atol=0)
    for name, moments in now.layers.items():
        assert torch.equal(moments.cross_scatter, later.layers[name].cross_scatter), name


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for a GPU: reading a value, and shapes that depend on values."""

    count = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.count += str(op).startswith(("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select"))
        return op(*args, **(kwargs or {}))


def two_layers():
    teacher = fs.teachers.two_layer(d=6, m=3, c=2, seed=0)
    return teacher, fs.Population.two_layer(teacher, multi=[1, 3], seeds=range(2))


@pytest.mark.parametrize("kind", ["MLPs", "population", "modules"])
def test_the_host_waits_no_more_often_for_more_batches(kind, networks, late):
    pair = {"MLPs": networks[:2], "population": two_layers(), "modules": (module(5), module(9))}[kind]
    counts = []
    for number in (2, 6):
        with Waits() as waits:
            fs.measure(*pair, networks[2][: 50 * number], batch_size=50, coactivation=True, grams=True)
        counts.append(waits.count)
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("own", [True, False], ids=["MLPs", "modules"])
def test_the_first_bad_batch_is_named_at_the_end(networks, late, value, own):
    x, passed = networks[2], []
    x[350, 2] = x[650, 2] = value

    def loader():
        for batch in x.split(100):
            yield batch
            passed.append(batch)

    pair = networks[:2] if own else (module(5), module(9))
    with pytest.raises(ValueError, match=r"^data, batch 3: got NaN or infinite values; takes finite values$"):
        fs.measure(*pair, loader(), batch_size=100)
    assert len(passed) == 7


def test_activations_are_refused_by_their_layer_at_the_end(late):
    one = torch.ones(1, 1)
    teacher = fs.MLP.from_weights([(one, None), (one, None), (one, None)])
    student = fs.MLP.from_weights([(one, None), (one * 1e14, None), (one, None)])
    x = torch.rand(700, 1)
    assert fs.measure(teacher, student, x, batch_size=100).layers["hidden2"].student_mean.isfinite()
    x[250] = 1e30  # hidden1 and the student's hidden2 go beyond what float32 can square; later batches do not
    with pytest.raises(ValueError, match=r"^data, hidden1: teacher: got NaN, infinite or too large .* in 1 of 1 nodes"):
        fs.measure(teacher, student, x, batch_size=100)
    x[250] = 1e6  # only the student's hidden2
    with pytest.raises(ValueError, match=r"^data, hidden2: student: got NaN, infinite or too large .* in 1 of 1 nodes"):
        fs.measure(teacher, student, x, batch_size=100)


def test_activations_of_modules_are_refused_by_their_layer_at_the_end(late):
    student = module(9, spoilt=NaNInCall(3))
    with pytest.raises(ValueError, match=r"^data, relu -> spoilt: student: got NaN, .* in 9 of 9 nodes"):
        fs.measure(module(5), student, torch.rand(700, 6), layers={"relu": "spoilt"}, batch_size=100)
    assert student.spoilt.left == 3 - 7


def test_a_loss_that_is_not_finite_is_reported(late):
    one = torch.ones(1, 1)
    huge = fs.MLP.from_weights([(one, None), (one * 3e38, None)])
    with pytest.raises(ValueError, match="data, loss: got 1 of 1 values NaN or infinite"):
        fs.measure(huge, fs.MLP.from_weights([(one, None), (one, None)]), 4 * torch.rand(50, 1) + 1)


def test_a_population_is_the_same_in_large_slabs(request):
    teacher, _ = two_layers()
    students = fs.Population.two_layer(teacher, multi=[1, 3], seeds=range(37), std=0.3)
    for bias in (students.b1, students.b2):
        bias.copy_(torch.linspace(-1, 1, bias.numel()).view_as(bias))
    x = fs.data.gaussian(900, 6, seed=1)
    now = fs.measure(teacher, students, x)
    request.getfixturevalue("late")
    later = fs.measure(teacher, students, x, batch_size=400)
    torch.testing.assert_close(later.best_correlation, now.best_correlation, rtol=0, atol=1e-6)
    torch.testing.assert_close(later.loss, now.loss, rtol=1e-6, atol=0)


@pytest.mark.parametrize("widths", [(20, 50, 10), (20, 50, 75, 100, 125, 10), (4096, 4096, 10)], ids=str)
def test_a_gpu_has_enough_to_do_at_a_time_and_holds_little(widths, late):
    teacher, student = ([(torch.empty(n, d, device=GPU), None) for d, n in pairwise(w)] for w in (widths, wide(widths)))
    samples = layerwise._samples(teacher, student)
    held = 4 * samples * sum(len(weight) for weight, _ in student)
    assert held <= 256 * 2**20
    products = sum(t.numel() + s.numel() + len(t) * len(s) for (t, _), (s, _) in zip(teacher, student, strict=True))
    assert held > 250 * 2**20 or 2 * samples * products >= 2e10 * (len(widths) - 2)


@pytest.mark.parametrize("inputs, samples", [(20, 131_072), (784, 85_598), (100_000, 8192)])
def test_a_gpu_is_sent_many_samples_at_a_time_but_few_bytes(inputs, samples, late):
    assert layerwise._batch_size(torch.empty(50, inputs, device=GPU)) == samples


def wide(widths):
    first, *hidden, last = widths
    return first, *(8 * n for n in hidden), last


def test_slabs_of_a_population_are_large_on_a_gpu(late):
    stack = [(torch.empty(256, 200, 100, device=GPU), None), (torch.empty(256, 50, 200, device=GPU), None)]
    students = [len(slab[0][0]) for slab in layerwise._slabs(stack)]
    samples = layerwise._samples(stack, stack)
    each = samples * 250 * 4  # bytes
    fitting = 256 * 2**20 // each // 16 * 16
    assert sum(students) == 256 and max(students) <= fitting and len(students) == -(-256 // fitting)


SLABS = [(5, 3, [3]), (5, 100, [100]), (300, 20, [16, 4]), (1000, 5, [4, 1]), (5000, 2, [1, 1])]


@pytest.mark.parametrize("width, students, slabs", SLABS)
def test_slabs_of_a_population_are_filled_up_on_a_gpu(width, students, slabs, late):
    """To a multiple of 16, or of fewer where no more have room, so that the outputs of so many are one product."""
    stack = [(torch.ones(students, width, 6), torch.ones(students, width)), (torch.ones(students, 3, width), None)]
    found = layerwise._slabs(stack)
    assert [len(weight) for ((weight, _), _) in found] == slabs
    together = min(16, max(slabs)) if width > 5 else 16
    for slab in found:
        filled = layerwise._Pass(slab, slab, 0.0, {})
        assert filled.together == together
        for (weight, bias), (whole, zeros) in zip(slab, filled.student, strict=True):
            here = len(weight)
            assert len(whole) == -(-here // together) * together
            assert torch.equal(whole[:here], weight) and not whole[here:].any()
            assert (bias is None) == (zeros is None)
            if bias is not None:
                assert torch.equal(zeros[:here], bias) and len(zeros) == len(whole) and not zeros[here:].any()


def test_students_that_fill_up_a_slab_are_not_counted(late):
    teacher = fs.teachers.two_layer(d=6, m=3, c=2, seed=0)
    students = fs.Population.two_layer(teacher, multi=[2], seeds=range(3))
    students.w1[4] = 3e38
    with pytest.raises(
        ValueError, match=r"^data, hidden1: student: got NaN, infinite or too large .* in 1 of 18 nodes"
    ):
        fs.measure(teacher, students, torch.rand(50, 6) + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_student_on_a_gpu_is_the_same_in_any_company(dtype, late):
    teacher = fs.teachers.two_layer(d=6, m=3, c=5, seed=0, dtype=dtype)
    students = fs.Population.two_layer(teacher, multi=[1, 3, 4], seeds=range(5), std=0.7)
    x = fs.data.gaussian(900, 6, seed=1, dtype=dtype)
    together = fs.measure(teacher, students, x)
    for chosen in ([7], [14, 3, 7], [5, 6, 7, 8, 9, 10]):
        few, place = fs.measure(teacher, students.select(chosen), x), chosen.index(7)
        assert len(few.loss) == len(chosen) and torch.equal(few.loss[place], together.loss[7])
        for name, tensor in few.moments(place).tensors().items():
            assert torch.equal(tensor, together.moments(7).tensors()[name]), name


def test_inputs_on_the_cpu_are_moved_to_the_networks():
    places = [torch.ones(5, 2).int(), (torch.ones(3, 2).int(), torch.zeros(3)), torch.ones(4, 2).int().to(GPU)]
    checked = []
    found = list(read(iter(places), 4, lambda place, x: checked.append(x.device), False, GPU))
    assert [len(batch.x) for batch in found] == [4, 1, 3, 4]
    assert {batch.x.device for batch in found} == set(checked) == {GPU}


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize(
    "kind, copied",
    [(iter, True), (DataLoader, False), (torch.stack, False)],
    ids=["iterable", "DataLoader", "tensor"],
)
def test_the_host_need_not_wait_for_inputs_to_be_moved(kind, copied, pinned, late, monkeypatch):
    """They are pinned; what an iterable may write over is copied even if it is pinned already."""
    copies = []
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda x: pinned)
    monkeypatch.setattr(batches, "_pinned_copy", lambda x: copies.append(x) or x)
    list(read(kind([torch.ones(3, 2).int()] * 4), 8, lambda place, x: None, False, GPU))
    assert bool(copies) == (copied or not pinned)


def test_inputs_are_moved_to_the_network_that_has_weights(monkeypatch):
    moved_to = []
    read_nothing = lambda data, samples, check, progress, device: moved_to.append(device) or iter(())  # noqa: E731
    monkeypatch.setattr(sys.modules["fastspec.measure"], "read", read_nothing)
    bare, there = nn.Sequential(nn.ReLU()), module(5).to(GPU)
    for pair in ((bare, there), (there, bare), (bare, bare)):
        fs.measure(*pair, torch.rand(5, 6))
    assert moved_to == [GPU, GPU, None]


def test_inputs_on_another_gpu_are_refused_not_moved():
    teacher = fs.teachers.separated([6, 5, 3], seed=0)
    with pytest.raises(ValueError, match="device meta"):
        fs.measure(teacher, teacher, torch.zeros(5, 6, device="meta"))
