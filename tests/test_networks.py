"""MLP, ConvNet, student_like, pruning, and their files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from fastspec.networks import MLP, ConvNet, student_like, student_widths
from fastspec.pruning import prune
from fastspec.tensor_files import save_tensors


def random_norms(network: MLP | ConvNet, seed: int = 0) -> MLP | ConvNet:
    """Give the batch norms statistics and gains, some negative, that are far from the identity."""
    generator = torch.Generator().manual_seed(seed)
    for norm in network.norms:
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        norm.running_var.copy_(0.5 + torch.rand(norm.running_var.shape, generator=generator))
    return network.eval()


def inputs(*size: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(size, dtype=dtype, generator=torch.Generator().manual_seed(1))


def test_forward_is_torch_sequential():
    network = MLP([5, 4, 3, 2], negative_slope=0.1, batch_norm="before", dtype=torch.float64)
    random_norms(network)
    a, b, c = network.linears
    n, m = network.norms
    peer = nn.Sequential(a, n, nn.LeakyReLU(0.1), b, m, nn.LeakyReLU(0.1), c)
    x = inputs(7, 5)
    torch.testing.assert_close(network(x), peer(x), rtol=0, atol=0)
    torch.testing.assert_close(network.activations(x)[1], peer[:6](x), rtol=0, atol=0)


@pytest.mark.parametrize("bias", [True, False, [True, False, True]])
@pytest.mark.parametrize("batch_norm", [None, "before", "after"])
@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_folded_keeps_activations_and_outputs(batch_norm, bias, slope):
    network = MLP([6, 5, 4, 3], bias=bias, batch_norm=batch_norm, negative_slope=slope, dtype=torch.float64)
    random_norms(network)
    plain = MLP.from_weights(network.folded(), negative_slope=slope)
    assert len(plain.norms) == 0
    x = inputs(50, 6)
    torch.testing.assert_close(plain(x), network(x), rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(plain.activations(x), network.activations(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        assert (ours > 0).equal(theirs > 0)


def test_activations_after_norm_are_relu_outputs():
    network = random_norms(MLP([6, 50, 3], batch_norm="after"))
    first = network.activations(inputs(20, 6, dtype=torch.float32))[0]
    assert (first >= 0).all()
    assert (first == 0).any()


def test_initial_weights_follow_the_seed_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    one, same, other = MLP([40, 30, 2], seed=3), MLP([40, 30, 2], seed=3), MLP([40, 30, 2], seed=4)
    ConvNet((1, 5, 5), [2], 3)
    assert torch.get_rng_state().equal(state)
    assert one.linears[0].weight.equal(same.linears[0].weight)
    assert not one.linears[0].weight.equal(other.linears[0].weight)
    weight = one.linears[0].weight
    assert weight.abs().max() <= 40**-0.5
    assert abs(float(weight.detach().std()) - (40 * 3) ** -0.5) < 0.005  # U(-1, 1) / sqrt(40)


def test_networks_are_made_on_the_default_device_or_on_the_one_asked_for():
    with torch.device("meta"):
        assert {p.device.type for p in MLP([2, 3, 1]).parameters()} == {"meta"}
        here = student_like(MLP([2, 3, 1], device="cpu"), init="normal")
    there = student_like(MLP([2, 3, 1]), init="normal")
    assert torch.equal(here.layers[0].weight, there.layers[0].weight)


def test_from_weights_copies_and_weights_gives_copies():
    w1, w2, b1 = inputs(3, 5), inputs(2, 3), inputs(3)
    network = MLP.from_weights([(w1, b1), (w2, None)])
    assert network.widths == [5, 3, 2]
    assert network.linears[1].bias is None
    w1_before = w1.clone()
    w1.zero_()
    (weight, bias), (_, top_bias) = network.weights()
    assert weight.equal(w1_before)
    assert bias.equal(b1)
    assert top_bias is None
    weight.zero_()
    assert network.linears[0].weight.equal(w1_before)


def test_convnet_is_torch_sequential():
    network = ConvNet((3, 8, 9), [4, 5], 6, padding=1, kernel=5, batch_norm="after", dtype=torch.float64)
    random_norms(network)
    (a, b), (n, m) = network.convs, network.norms
    peer = nn.Sequential(a, nn.ReLU(), n, b, nn.ReLU(), m, nn.Flatten(), network.head)
    x = inputs(2, 3, 8, 9)
    torch.testing.assert_close(network(x), peer(x), rtol=0, atol=0)
    assert [list(t.shape) for t in network.activations(x)] == [[2, 4, 6, 7], [2, 5, 4, 5]]
    torch.testing.assert_close(network.activations(x)[1], peer[:5](x), rtol=0, atol=0)


@pytest.mark.parametrize(
    "network",
    [
        MLP([5, 4, 3, 2], bias=[True, False, True], negative_slope=0.25, batch_norm="after", dtype=torch.float64),
        ConvNet((1, 6, 6), [2, 3], 4, batch_norm="before", dtype=torch.float64),
    ],
    ids=["mlp", "convnet"],
)
def test_save_and_load(network, tmp_path):
    random_norms(network)
    network.save(tmp_path / "network.safetensors")
    again = type(network).load(tmp_path / "network.safetensors")
    x = inputs(4, *network.input_shape)
    assert again.architecture() == network.architecture()
    assert again(x).equal(network(x))


def test_load_refuses_damaged_and_foreign_files(tmp_path):
    path = tmp_path / "network.safetensors"
    MLP([5, 4, 2]).save(path)
    whole = path.read_bytes()
    with pytest.raises(ValueError, match=r"network\.safetensors.*saved MLP; takes a saved ConvNet"):
        ConvNet.load(path)
    path.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=r"network\.safetensors"):
        MLP.load(path)
    path.write_bytes(b"not a network")
    with pytest.raises(ValueError, match=r"network\.safetensors"):
        MLP.load(path)
    with pytest.raises(FileNotFoundError, match="absent"):
        MLP.load(tmp_path / "absent")


@pytest.mark.parametrize(
    "architecture",
    [
        {"network": "MLP", "widths": [5, 3, 2]},  # other sizes than the tensors
        {"network": "MLP", "widths": [5, 0, 2]},
        {"network": "MLP", "depth": 3},
        {"widths": [5, 4, 2]},
        [1],
    ],
)
def test_load_refuses_weights_that_do_not_fit(architecture, tmp_path):
    path = tmp_path / "n"
    save_tensors(path, "network", MLP([5, 4, 2]).state_dict(), architecture=json.dumps(architecture))
    with pytest.raises(ValueError, match=r"path '.*n': got weights that do not fit"):
        MLP.load(path)


def test_load_refuses_weights_that_are_not_finite(tmp_path: Path):
    network = MLP([5, 4, 2])
    network.linears[0].weight.data[0, 0] = torch.nan
    network.save(tmp_path / "n")
    with pytest.raises(ValueError, match=r"linears\.0\.weight: got 1 of 20 values NaN"):
        MLP.load(tmp_path / "n")


@pytest.mark.parametrize(
    ("multi", "widths"),
    [(1, [50, 3]), (2.5, [125, 8]), (1.1, [55, 4]), ([1, 4], [50, 12])],
)
def test_student_widths_round_up(multi, widths):
    assert student_widths([50, 3], multi) == widths


def test_student_like_takes_the_teachers_frame():
    teacher = MLP([5, 4, 3, 2], bias=False, negative_slope=0.3, batch_norm="after", dtype=torch.float64)
    student = student_like(teacher, multi=2, seed=1)
    assert student.widths == [5, 8, 6, 2]
    assert (student.negative_slope, student.batch_norm, student.linears[0].bias) == (0.3, "after", None)
    assert student.linears[0].weight.dtype == torch.float64
    assert len(student_like(teacher, batch_norm=None).norms) == 0
    assert teacher.widths == [5, 4, 3, 2]
    conv = student_like(ConvNet((1, 6, 6), [2, 3], 4), multi=(1, 2))
    assert (conv.channels, conv.outputs) == ([2, 6], 4)


def test_student_seeds_are_independent_of_network_seeds():
    teacher = MLP([5, 4, 2], seed=0)
    first, second = student_like(teacher, seed=0), student_like(teacher, seed=1)
    assert not first.linears[0].weight.equal(teacher.linears[0].weight)
    assert not first.linears[0].weight.equal(second.linears[0].weight)


@pytest.mark.parametrize("batch_norm", [None, "before", "after"])
def test_pruned_mlp_is_the_network_with_fan_outs_zeroed(batch_norm):
    network = random_norms(MLP([6, 10, 8, 3], batch_norm=batch_norm, dtype=torch.float64))
    pruned = prune(network, [0.3, 0.5])
    assert pruned.network.widths == [6, 7, 4, 3]
    assert not pruned.network.training
    for above, kept, removed in zip(network.linears[1:], pruned.kept, (3, 4), strict=True):
        strength = above.weight.detach().abs().mean(0)
        gone = [i for i in range(len(strength)) if i not in kept.tolist()]
        assert len(gone) == removed and kept.tolist() == sorted(kept.tolist())
        assert strength[gone].max() < strength[kept].min()
        above.weight.data[:, gone] = 0
    x = inputs(9, 6)
    torch.testing.assert_close(pruned.network(x), network(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pruned.network.activations(x)[1], network.activations(x)[1][:, pruned.kept[1]])


def test_pruned_convnet_is_the_network_with_fan_outs_zeroed():
    network = random_norms(ConvNet((2, 7, 7), [6, 4], 3, batch_norm="after", dtype=torch.float64))
    pruned = prune(network, 0.5)
    assert pruned.network.channels == [3, 2]
    gone = [[i for i in range(n) if i not in k.tolist()] for n, k in zip((6, 4), pruned.kept, strict=True)]
    strengths = [
        network.convs[1].weight.detach().abs().mean((0, 2, 3)),
        network.head.weight.detach().abs().view(3, 4, 9).mean((0, 2)),
    ]
    for strength, kept, removed in zip(strengths, pruned.kept, gone, strict=True):
        assert strength[removed].max() < strength[kept].min()
    network.convs[1].weight.data[:, gone[0]] = 0
    network.head.weight.data.view(3, 4, 9)[:, gone[1]] = 0
    x = inputs(5, 2, 7, 7)
    torch.testing.assert_close(pruned.network(x), network(x), rtol=1e-12, atol=1e-12)


def test_pruning_keeps_at_least_one_node():
    assert prune(MLP([2, 3, 2]), 1 - 1e-12).network.widths == [2, 1, 2]


def test_the_share_that_is_pruned_is_not_rounded_down():
    assert 0.29 * 100 < 29
    assert prune(MLP([2, 100, 2]), 0.29).network.widths == [2, 71, 2]


def test_autocast_takes_inputs_of_its_own_precision():
    network = MLP([3, 4, 2])
    x = inputs(5, 3, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(x).dtype == torch.bfloat16
    with pytest.raises(TypeError, match=r"x: got dtype torch.bfloat16"):
        network(x)


W = torch.ones(3, 2)
MLP_2_3_1 = MLP([2, 3, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MLP([3]), r"widths: got \[3\]"),
        (lambda: MLP([3, 0, 2]), r"widths\[1\]: got 0; takes an integer of at least 1"),
        (lambda: MLP([3, 2.0]), r"widths\[1\]: got 2.0"),
        (lambda: MLP([3, True]), r"widths\[1\]: got True"),
        (lambda: MLP(3), "widths: got int"),
        (lambda: MLP([3, 2], negative_slope=1.5), r"negative_slope: got 1.5; takes a number in \[0, 1\]"),
        (lambda: MLP([3, 2], negative_slope=float("nan")), "negative_slope: got nan"),
        (lambda: MLP([3, 2], batch_norm="inside"), "batch_norm: got 'inside'"),
        (lambda: MLP([3, 2], bias=[True, True]), "bias: got 2 values"),
        (lambda: MLP([3, 2], seed=-1), "seed: got -1"),
        (lambda: MLP_2_3_1(torch.ones(4, 3)), r"x: got shape \[4, 3\]; takes \[samples, 2\]"),
        (lambda: MLP_2_3_1(torch.ones(2)), r"x: got shape \[2\]"),
        (lambda: MLP_2_3_1(torch.ones(4, 2, dtype=torch.int64)), "x: got dtype torch.int64"),
        (lambda: MLP.from_weights([]), "layers: got an empty sequence"),
        (lambda: MLP.from_weights([(W, None), (W, None)]), r"layers\[1\] weight: got shape \[3, 2\]; takes \[out, 3\]"),
        (lambda: MLP.from_weights([(W, torch.ones(2))]), r"layers\[0\] bias: got shape \[2\]"),
        (lambda: MLP.from_weights([(W * torch.inf, None)]), r"layers\[0\] weight: got 6 of 6 values NaN or inf"),
        (lambda: MLP.from_weights([(W, torch.full((3,), torch.nan))]), r"layers\[0\] bias: got 3 of 3 values NaN"),
        (lambda: MLP.from_weights([(W, None), (W.T.double(), None)]), r"layers\[1\] weight: got dtype torch.float64"),
        (lambda: MLP.from_weights([(W.tolist(), None)]), r"layers\[0\] weight: got list"),
        (lambda: ConvNet((1, 4, 4), [2, 2], 3), "input_shape: got .* height and width of at least 5"),
        (lambda: ConvNet((1, 9, 4), [2, 2], 3), "input_shape: got .* height and width of at least 5"),
        (lambda: ConvNet((4, 4), [2], 3), r"input_shape: got \(4, 4\); takes \(channels, height, width\)"),
        (lambda: ConvNet((1, 4, 4), [], 3), "channels: got"),
        (lambda: ConvNet((1, 4, 4), [2], 0), "outputs: got 0"),
        (lambda: ConvNet((1, 4, 4), [2], 1, padding=-1), "padding: got -1"),
        (lambda: student_like(MLP_2_3_1, multi=0.5), "multi: got 0.5; takes a finite number of at least 1"),
        (lambda: student_like(MLP_2_3_1, multi=[1, 2]), "multi: got 2 values"),
        (lambda: student_like(nn.Linear(2, 2)), "teacher: got Linear; takes an MLP or a ConvNet"),
        (lambda: prune(MLP_2_3_1, 1.0), "fractions: got 1.0"),
        (lambda: prune(MLP_2_3_1, [0.5, 0.5]), "fractions: got 2 values"),
        (lambda: prune(nn.Linear(2, 2), 0.5), "network: got Linear"),
    ],
)
def test_bad_input_gets_one_clear_error(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
