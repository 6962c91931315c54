"""Op linear_relu: activations, packed gates and sums of a layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastspec.ops.linear_relu import linear_relu, reference

pytestmark = pytest.mark.usefixtures("poisoned")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
POPULATIONS = [((), False), ((3,), False), ((3,), True)]
NAN = float("nan")


def problem(samples, inputs, nodes, *population, dtype=torch.float32, own=False, bias=True, integer=False):
    """x, weight and bias of a call; networks with inputs of their own when `own`."""

    def draw(*shape):
        return torch.randint(-3, 4, shape).to(dtype) if integer else torch.randn(shape, dtype=torch.float64).to(dtype)

    x = draw(*(population if own else ()), samples, inputs)
    return x, draw(*population, nodes, inputs), draw(*population, nodes) if bias else None


def by_hand(x, weight, bias, slope):
    """The layer in float64 numpy: activation, gates, node_sum, active."""
    x, w = x.double().numpy(), weight.double().numpy()
    z = np.einsum("...ni,...ki->...nk", np.broadcast_to(x, (*w.shape[:-2], *x.shape[-2:])), w)
    z = z if bias is None else z + bias.double().numpy()[..., None, :]
    gates = z > 0
    activation = np.where(gates, z, slope * z)
    return activation, gates, activation.astype(np.longdouble).sum(-2).astype(float), gates.sum(-2)


def unpacked(gates, nodes):
    return np.unpackbits(gates.numpy(), axis=-1, bitorder="little")[..., :nodes].astype(bool)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("population, own", POPULATIONS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (100, 6, 8), (5000, 3, 13), (50, 40, 100)])
def test_integers_are_exact(dtype, population, own, shape):
    args = problem(*shape, *population, dtype=dtype, own=own, integer=True)
    out = linear_relu(*args, negative_slope=0.25)
    activation, gates, node_sum, active = by_hand(*args, 0.25)
    assert torch.equal(out.activation, torch.from_numpy(activation).to(dtype))
    assert (unpacked(out.gates, shape[2]) == gates).all()
    assert torch.equal(out.node_sum, torch.from_numpy(node_sum))
    assert torch.equal(out.active, torch.from_numpy(active))


@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-14), (torch.float32, 1e-6)], ids=str)
@pytest.mark.parametrize("slope, bias", [(0.0, True), (0.0, False), (0.2, True), (1.0, True)])
def test_agrees_with_the_layer_by_hand(dtype, bound, slope, bias):
    args = problem(9000, 30, 21, dtype=dtype, bias=bias)
    out = linear_relu(*args, negative_slope=slope)
    activation, _, node_sum, _ = by_hand(*args, slope)
    size = abs(activation).max()
    assert abs(out.activation.numpy() - activation).max() <= bound * size
    assert abs(out.node_sum.numpy() - node_sum).max() <= bound * size * 9000**0.5
    assert (unpacked(out.gates, 21) == (out.activation > 0).numpy()).all()
    assert torch.equal(out.active, (out.activation > 0).sum(0))


def test_node_sums_are_formed_in_float64():
    x = torch.ones(100, 1)
    x[0] = 2**24
    assert float(linear_relu(x, torch.ones(1, 1), None).node_sum) == 2**24 + 99


def test_node_sums_are_of_activations_before_they_are_rounded():
    args = problem(4000, 50, 9, dtype=torch.bfloat16)
    out = linear_relu(*args)
    exact = by_hand(*args, 0.0)[2]
    assert abs(out.node_sum.numpy() - exact).max() <= 1e-6 * abs(exact).max()
    assert abs(out.activation.double().sum(0).numpy() - exact).max() > 1e-6 * abs(exact).max()


def test_bits_beyond_the_nodes_are_off():
    x, weight = torch.ones(3, 1), torch.ones(11, 1)
    assert linear_relu(x, weight, None).gates.tolist() == [[0xFF, 0x07]] * 3


def test_bit_order():
    weight = torch.tensor([[1.0], [-1], [-1], [1], [-1], [-1], [-1], [-1], [-1], [1]])
    assert linear_relu(torch.ones(1, 1), weight, None).gates.tolist() == [[0b00001001, 0b10]]


def test_the_gate_is_off_at_zero():
    out = linear_relu(torch.tensor([[1.0], [0.0], [-1.0]]), torch.ones(1, 1), None, negative_slope=0.5)
    assert out.activation.flatten().tolist() == [1, 0, -0.5] and out.gates.flatten().tolist() == [1, 0, 0]
    assert (float(out.node_sum), int(out.active)) == (0.5, 1)


@pytest.mark.parametrize("where", ["x", "weight", "bias"])
@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_nan_is_not_swallowed_by_the_gate(where, slope):
    args = dict(zip(("x", "weight", "bias"), problem(60, 5, 9), strict=True))
    args[where].view(-1)[7] = NAN
    out = linear_relu(**args, negative_slope=slope)
    bad = out.activation.isnan()
    assert int(bad.sum()) == (9 if where == "x" else 60)
    assert torch.equal(bad.any(0), out.node_sum.isnan()) and not unpacked(out.gates, 9)[bad.numpy()].any()


def strided(tensor, kind):
    if kind == "transposed":
        return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor
    wide = torch.full([2 * size + 1 for size in tensor.shape], NAN)
    view = wide[tuple(slice(1, None, 2) for _ in tensor.shape)]
    return view.copy_(tensor)


@pytest.mark.parametrize("kind", ["transposed", "slice"])
@pytest.mark.parametrize("population, own", POPULATIONS)
def test_any_strides(kind, population, own):
    args = problem(500, 12, 19, *population, own=own, integer=True)
    for got, want in zip(linear_relu(*(strided(a, kind) for a in args)), linear_relu(*args), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("own", [False, True])
def test_a_network_does_not_depend_on_its_population(own):
    x, weight, bias = problem(300, 11, 9, 5, own=own)
    together = linear_relu(x, weight, bias, negative_slope=0.1)
    for k in range(5):
        alone = linear_relu(x[k] if own else x, weight[k], bias[k], negative_slope=0.1)
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[k], b, rtol=0, atol=2e-4)  # torch's products vary with their shape


@pytest.mark.parametrize("shape", [(0, 3, 5), (4, 0, 5), (4, 3, 0), (4, 3, 5, 0), (0, 3, 5, 2)])
def test_empty_problems(shape):
    x, weight, bias = problem(*shape)
    samples, _, nodes, *population = shape
    out = linear_relu(x, weight, bias)
    assert out.activation.shape == (*population, samples, nodes)
    assert out.gates.shape == (*population, samples, -(-nodes // 8))
    assert out.node_sum.shape == out.active.shape == (*population, nodes)
    assert not out.node_sum.isnan().any()
    if shape == (4, 0, 5):
        assert torch.equal(out.activation, bias.relu().expand(4, -1))
    else:
        assert not out.node_sum.any() and not out.active.any()


@pytest.mark.parametrize("precision, tail", [("tf32", 2.0**-12), ("bf16", 2.0**-9)])
@pytest.mark.parametrize("side", ["x", "weight", "bias"])
def test_the_specification_rounds_both_operands_and_nothing_else(precision, tail, side):
    one = {"x": torch.ones(1, 1), "weight": torch.ones(1, 1), "bias": torch.zeros(1)}
    one[side] += tail
    fine, rough = (reference.linear_relu(*one.values(), 0.0, p)[0] for p in ("fp32", precision))
    assert float(fine) == 1 + tail and float(rough) == (1 + tail if side == "bias" else 1)


@pytest.mark.parametrize("population, own", POPULATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_opcheck(population, own, dtype):
    args = problem(20, 3, 5, *population, own=own, dtype=dtype)
    precision = "fp64" if dtype == torch.float64 else "fp32"
    torch.library.opcheck(torch.ops.fastspec.linear_relu.default, (*args, 0.1, precision))


def test_compiles_without_a_graph_break():
    args = problem(50, 3, 5, 2)
    compiled = torch.compile(linear_relu, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(*args), linear_relu(*args), strict=True):
        assert torch.equal(a, b)


def test_fake_of_a_cuda_tensor():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x, weight = torch.empty(10, 4, device="cuda"), torch.empty(2, 9, 4, device="cuda")
        out = linear_relu(x, weight, None, precision="bf16")
    assert [tuple(a.shape) for a in out] == [(2, 10, 9), (2, 10, 2), (2, 9), (2, 9)]
    assert {a.device.type for a in out} == {"cuda"}


X, W, B = torch.zeros(8, 4), torch.zeros(3, 4), torch.zeros(3)
BAD = {
    "integer data": ((X.long(), W, B), {}, TypeError, "x: got dtype torch.int64"),
    "a list": ((X, [[1.0]], B), {}, TypeError, "weight: got list"),
    "rank": ((X[0], W, B), {}, ValueError, r"x: got shape \[4\]"),
    "width": ((X, W[:, :3], B), {}, ValueError, "weight: got shape .* 4 inputs"),
    "bias": ((X, W, B[:2]), {}, ValueError, r"bias: got shape \[2\]; takes shape \[3\]"),
    "networks": ((X.expand(2, -1, -1), W.expand(3, -1, -1), None), {}, ValueError, "x: got shape"),
    "inputs of one network": ((X[None], W, None), {}, ValueError, "x: got shape"),
    "dtypes": ((X, W.double(), None), {}, TypeError, "weight: got dtype torch.float64"),
    "devices": ((X, W, B.to("meta")), {}, ValueError, "bias: got device meta"),
    "slope": ((X, W, B), {"negative_slope": NAN}, ValueError, "negative_slope: got nan"),
    "precision": ((X, W, B), {"precision": "fp64"}, ValueError, "precision: got 'fp64'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    args, options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        linear_relu(*args, **options)
