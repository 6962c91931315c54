"""Precision of matrix products: rounding, refusals, the specification's errors, and CPU kernels that are better."""

from __future__ import annotations

import struct

import pytest
import torch

import fastspec as fs
from fastspec.ops.cross_moments import cross_moments
from fastspec.ops.cross_moments import reference as cross_reference
from fastspec.ops.layer_moments import layer_moments
from fastspec.ops.layer_moments import reference as layer_reference
from fastspec.ops.precision import PRECISIONS, check_precision, rounded

LOW = PRECISIONS[1:]
RELATIVE = {"fp32": 0.0, "tf32x3": 0.0, "tf32": 2.0**-11, "bf16": 2.0**-8}  # half a unit in the last place

# float32 bits, and those of the nearest tf32 and bf16, ties to even
BITS = {
    "1": (0x3F800000, 0x3F800000, 0x3F800000),
    "below half a unit of tf32": (0x3F800FFF, 0x3F800000, 0x3F800000),
    "half a unit of tf32, even": (0x3F801000, 0x3F800000, 0x3F800000),
    "above half a unit of tf32": (0x3F801001, 0x3F802000, 0x3F800000),
    "half a unit of tf32, odd": (0x3F803000, 0x3F804000, 0x3F800000),
    "half a unit of bf16, even": (0x3F808000, 0x3F808000, 0x3F800000),
    "half a unit of bf16, odd": (0x3F818000, 0x3F818000, 0x3F820000),
    "into the next binade": (0x3FFFFFFF, 0x40000000, 0x40000000),
    "negative": (0xBF803000, 0xBF804000, 0xBF800000),
    "smallest subnormal": (0x00000001, 0x00000000, 0x00000000),
    "largest": (0x7F7FFFFF, 0x7F800000, 0x7F800000),
    "infinity": (0xFF800000, 0xFF800000, 0xFF800000),
    "-0": (0x80000000, 0x80000000, 0x80000000),
}


def of_bits(bits: int) -> torch.Tensor:
    return torch.tensor([struct.unpack("<f", struct.pack("<I", bits))[0]])


def bits_of(value: torch.Tensor) -> int:
    return int(value.view(torch.int32)) & 0xFFFFFFFF


@pytest.mark.parametrize("case", BITS)
def test_rounding_of_known_bit_patterns(case):
    x, tf32, bf16 = BITS[case]
    assert hex(bits_of(rounded(of_bits(x), "tf32"))) == hex(tf32)
    assert hex(bits_of(rounded(of_bits(x), "bf16"))) == hex(bf16)


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001])
@pytest.mark.parametrize("precision", LOW)
def test_nan_stays_nan(bits, precision):
    x = torch.tensor([bits - 2**32 if bits >= 2**31 else bits], dtype=torch.int32).view(torch.float32)
    assert rounded(x, precision).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("precision", LOW)
def test_rounding_is_to_the_nearest_and_keeps_the_dtype(dtype, precision):
    x = torch.randn(10_000, dtype=torch.float64).to(dtype)
    once = rounded(x, precision)
    assert once.dtype == dtype and torch.equal(rounded(once, precision), once)
    error = ((once - x).double() / x.double()).abs().max()
    assert error <= RELATIVE[precision] * (1 + 1e-6)
    if dtype in (torch.float64, torch.float32):
        assert error >= 0.9 * RELATIVE[precision]


def test_the_default_is_that_of_the_dtype():
    assert check_precision(None, torch.float64) == "fp64"
    assert {check_precision(None, dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)} == {"fp32"}
    assert [check_precision(name, torch.float16) for name in LOW] == list(LOW)


@pytest.mark.parametrize(
    "precision, dtype, takes",
    [
        ("fp64", torch.float32, "'fp32' or 'tf32x3' or 'tf32' or 'bf16' with torch.float32 tensors"),
        ("tf32", torch.float64, "'fp64' with torch.float64 tensors"),
        ("ieee", torch.float32, "'fp32' or"),
        (32, torch.float32, "'fp32' or"),
    ],
)
def test_other_precisions_are_refused_everywhere(precision, dtype, takes):
    x, w = torch.zeros(4, 3, dtype=dtype), torch.zeros(2, 3, dtype=dtype)
    network = fs.MLP([3, 2, 1], dtype=dtype)
    for call in (
        lambda: cross_moments(x, x, precision=precision),
        lambda: layer_moments(x, w, None, x, w, None, precision=precision),
        lambda: fs.cross_moments(x, x, precision=precision),
        lambda: fs.layer_moments(x, (w, None), (w, None), precision=precision),
        lambda: fs.measure(network, network, x, precision=precision),
    ):
        with pytest.raises(ValueError, match=f"precision: got {precision!r}; takes {takes}"):
            call()


@pytest.mark.native
@pytest.mark.parametrize(
    "precision, dtype", [("ieee", torch.float32), ("fp64", torch.float16), ("bf16", torch.float64)]
)
def test_a_direct_call_is_refused_too(precision, dtype):
    x = torch.zeros(4, 3, dtype=dtype)
    with pytest.raises(RuntimeError, match="precision is fp64 for float64 tensors"):
        torch.ops.fastspec.cross_moments(x, x, precision, False)
    with pytest.raises(RuntimeError, match="precision is fp64 for float64 tensors"):
        torch.ops.fastspec.layer_moments(x, x, None, x, x, None, 0.0, precision, False, False)


def problem():
    x, (w_t, w_s) = torch.randn(3000, 40), (torch.randn(n, 40) / 40**0.5 for n in (7, 3 * 11))
    return x, w_t, torch.randn(7), x, w_s.view(3, 11, 40), torch.randn(3, 11)


def scatter_error(scatters, exact):
    """Largest error of a cross scatter in units of the nodes' own spreads."""
    spreads = (exact[2].unsqueeze(-1) * exact[3].unsqueeze(-2)).sqrt()
    return float(((scatters[4] - exact[4]) / spreads).abs().max())


def test_errors_of_the_specification_are_those_of_its_rounding():
    args = problem()
    exact = layer_reference.layer_moments(*(a.double() for a in args), 0.0, "fp64", False, True)
    found = {p: layer_reference.layer_moments(*args, 0.0, p, False, True) for p in LOW}
    moments = {p: scatter_error(out, exact) for p, out in found.items()}
    activations = {p: float((out[9] - exact[9]).abs().max()) for p, out in found.items()}
    assert moments["fp32"] == moments["tf32x3"] < 1e-6 and activations["fp32"] < 1e-5
    for p in ("tf32", "bf16"):
        assert RELATIVE[p] / 100 < moments[p] < RELATIVE[p]  # random errors of 3000 samples cancel
        assert RELATIVE[p] / 2 < activations[p] < 8 * RELATIVE[p]


def test_only_the_cross_product_of_given_activations_is_rounded():
    t, s = torch.randn(2000, 5) + 3, torch.randn(2000, 6) + 3
    fine, rough = (cross_reference.cross_moments(t, s, p, True) for p in ("fp32", "bf16"))
    assert [torch.equal(a, b) for a, b in zip(fine, rough, strict=True)] == [i != 4 for i in range(8)]


def test_activations_are_centred_before_they_are_rounded():
    """At a mean of 1000 bf16 is as coarse as 4: the spread of 1 would be lost."""
    t = torch.randn(2000, 5) + 1000
    s = t + torch.randn(2000, 5)
    exact = cross_reference.cross_moments(t.double(), s.double(), "fp64", False)
    assert scatter_error(cross_reference.cross_moments(t, s, "bf16", False), exact) < RELATIVE["bf16"]


@pytest.mark.native
@pytest.mark.parametrize("precision", LOW)
def test_cpu_kernels_compute_every_precision_in_fp32(precision):
    args = problem()
    for a, b in zip(layer_moments(*args, precision=precision)[0], layer_moments(*args)[0], strict=True):
        assert torch.equal(a, b)
    t, s = args[0], args[0].relu()
    assert torch.equal(cross_moments(t, s, precision=precision).cross_scatter, cross_moments(t, s).cross_scatter)


@pytest.mark.parametrize("grams", [False, True])
def test_public_functions_pass_it_on(grams):
    x, w_t, b_t, _, w_s, b_s = problem()
    teacher, student = (w_t, b_t), (w_s[0], b_s[0])
    networks = [
        fs.MLP.from_weights([layer, (torch.ones(1, len(layer[1])), torch.zeros(1))]) for layer in (teacher, student)
    ]
    wanted = ["cross_scatter", *(["teacher_gram", "student_gram"] if grams else [])]
    calls = (
        lambda p: fs.cross_moments(x, x[:, :5], grams=grams, precision=p),
        lambda p: fs.layer_moments(x, teacher, student, grams=grams, precision=p),
        lambda p: fs.layer_moments_with_activations(x, teacher, student, grams=grams, precision=p)[0],
        lambda p: fs.measure(*networks, x, grams=grams, precision=p).layers["hidden1"],
        lambda p: fs.measure(*networks, x, layers=["linears.0"], grams=grams, precision=p).layers["linears.0"],
    )
    with fs.backend("reference"):
        for call in calls:
            fine, rough = call(None), call("bf16")
            for name in wanted:
                assert not torch.equal(getattr(fine, name), getattr(rough, name)), name
