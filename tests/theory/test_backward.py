"""backward_gram: E[beta] and E[H] of every hidden layer."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from theory_problems import DEPTHS, F64, INPUTS, OUTPUTS, by_hand, convolutional, module, normal, pair, randomize
from torch import nn

import fastspec as fs
from fastspec.theory import backward, backward_gram

FIELDS = ("beta_student_teacher", "beta_teacher_teacher", "beta_student_student")


def expected(teacher, student, x):
    """beta and H of every hidden layer in the order of `LayerGram`'s fields, by autograd."""
    (v_t, d_t), (v_s, d_s) = by_hand(teacher, x), by_hand(student, x)
    found = []
    for t, s, g, d in zip(v_t, v_s, d_t, d_s, strict=True):
        pairs = ((t, s), (t, t), (s, s), (t * g[:, None], s * d[:, None]))
        pairs += ((pairs[3][0], pairs[3][0]), (pairs[3][1], pairs[3][1]))
        found.append([torch.einsum("xcj,xck->jk", a, b) / len(x) for a, b in pairs])
    return found


def matrices(gram):
    names = [field.replace(old, new) for old, new in (("beta", "beta"), ("beta", "h")) for field in FIELDS]
    return [getattr(gram, name) for name in names]


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(
    "slope, bias, batch_norm", [(0, True, None), (0.2, False, None), (0.1, True, "before"), (0, True, "after")]
)
def test_agrees_with_autograd(depth, slope, bias, batch_norm):
    teacher, student = pair(depth, slope=slope, bias=bias, batch_norm=batch_norm)
    x = 2 * normal(50, INPUTS)
    found = backward_gram(teacher, student, x)
    assert list(found) == [f"hidden{i + 1}" for i in range(depth - 1)]
    for gram, want in zip(found.values(), expected(teacher, student, x), strict=True):
        for a, b in zip(matrices(gram), want, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * float(b.abs().max()))
        assert gram.samples == 50


def test_matrices_are_teacher_by_student_and_the_papers_transpose():
    teacher, student = pair(3)
    x = normal(1, INPUTS)
    gram = backward_gram(teacher, student, x)["hidden1"]
    (v_t, _), (v_s, _) = by_hand(teacher, x), by_hand(student, x)
    assert gram.beta_student_teacher.shape == (6, 9)
    torch.testing.assert_close(gram.beta_student_teacher.T, v_s[0][0].T @ v_t[0][0])


def test_the_recursion_of_the_paper():
    """Per sample: beta_{l-1} = W^T H_l W, H = D beta D, from H = I at the outputs."""
    teacher, student = pair(4, slope=0.3)
    for x in normal(5, INPUTS).split(1):
        found = backward_gram(teacher, student, x)
        _, d_t = by_hand(teacher, x)
        _, d_s = by_hand(student, x)
        h = torch.eye(OUTPUTS, dtype=F64)
        for layer in reversed(range(3)):
            h = teacher.layers[layer + 1].weight.T @ h @ student.layers[layer + 1].weight
            gram = found[f"hidden{layer + 1}"]
            torch.testing.assert_close(gram.beta_student_teacher, h.detach(), rtol=0, atol=1e-13)
            h = d_t[layer].T * h * d_s[layer]
            torch.testing.assert_close(gram.h_student_teacher, h.detach(), rtol=0, atol=1e-13)


def test_two_layers_have_constant_inner_products_of_fan_outs():
    teacher, student = pair(2)
    gram = backward_gram(teacher, student, normal(30, INPUTS))["hidden1"]
    top_t, top_s = (network.layers[1].weight.detach() for network in (teacher, student))
    torch.testing.assert_close(gram.beta_student_teacher, top_t.T @ top_s)
    torch.testing.assert_close(gram.beta_student_student, top_s.T @ top_s)
    torch.testing.assert_close(gram.strength(), top_s.norm(dim=0))
    torch.testing.assert_close(gram.teacher_strength(), top_t.norm(dim=0))


@pytest.mark.parametrize("batch_norm", [None, "before", "after"])
def test_augmented_maps_carry_the_biases(batch_norm):
    """f_L = V f for activations that end with 1, so that f_L . f*_L = f^T beta f* sample by sample."""
    teacher, student = pair(4, batch_norm=batch_norm)
    for x in normal(4, INPUTS).split(1):
        augmented, plain = backward_gram(teacher, student, x, augmented=True), backward_gram(teacher, student, x)
        (f_t, y_t), (f_s, y_s) = teacher.activations_and_output(x), student.activations_and_output(x)
        for layer, (name, gram) in enumerate(augmented.items()):
            t, s = (torch.cat([f[layer][0], torch.ones(1, dtype=F64)]) for f in (f_t, f_s))
            torch.testing.assert_close(t @ gram.beta_student_teacher @ s, y_t[0] @ y_s[0])
            for a, b in zip(matrices(gram), matrices(plain[name]), strict=True):
                torch.testing.assert_close(a[:-1, :-1], b, rtol=0, atol=1e-13)
                assert a.shape[0] == b.shape[0] + 1


@pytest.mark.parametrize("slope", [0.0, 0.25])
def test_gates_are_off_at_zero(slope):
    """Inputs of 0 without biases: every pre-activation is 0."""
    teacher, student = pair(3, bias=False, slope=slope)
    general = sequence(*(m for layer in student.layers[:-1] for m in (layer, nn.LeakyReLU(slope))), student.layers[-1])
    for network in (student, general):
        gram = list(backward_gram(teacher, network, torch.zeros(4, INPUTS, dtype=F64)).values())[1]
        torch.testing.assert_close(gram.h_student_student, slope**2 * gram.beta_student_student)
        assert gram.beta_student_student.any()


def test_batches_are_merged():
    teacher, student = pair(4)
    x = normal(100, INPUTS)
    whole = backward_gram(teacher, student, x)
    for data in (x, iter(x.split(7)), [(x[:30], 0), (x[30:], 1)]):
        found = backward_gram(teacher, student, data, batch_size=33)
        for name, gram in found.items():
            for a, b in zip(matrices(gram), matrices(whole[name]), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


@pytest.mark.parametrize("batch_size, most", [(None, backward.BATCH), (300, 300)])
def test_samples_at_hand_are_bounded(monkeypatch, batch_size, most):
    teacher, student = pair(4)
    sizes, original = [], backward.chain_gram
    monkeypatch.setattr(
        backward, "chain_gram", lambda m, g, *a, **o: sizes.append(len(g[0])) or original(m, g, *a, **o)
    )
    backward_gram(teacher, student, normal(5000, INPUTS), batch_size=batch_size)
    assert max(sizes) == most and sum(sizes) == 5000


def test_within_can_be_left_out():
    teacher, student = pair(3)
    x = normal(20, INPUTS)
    whole, part = backward_gram(teacher, student, x), backward_gram(teacher, student, x, within=False)
    for name, gram in part.items():
        for field in ("beta_student_teacher", "h_student_teacher"):
            assert torch.equal(getattr(gram, field), getattr(whole[name], field))
        assert gram.beta_student_student.numel() == gram.h_teacher_teacher.numel() == 0


def test_float32_is_near_float64():
    teacher, student = pair(4)
    x = normal(500, INPUTS)
    exact = backward_gram(teacher, student, x)
    single = backward_gram(teacher.float(), student.float(), x.float())
    for name, gram in single.items():
        for a, b in zip(matrices(gram), matrices(exact[name]), strict=True):
            assert a.dtype == F64
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * float(b.abs().max()))


@pytest.mark.parametrize("batch_norm", [None, "before", "after"])
def test_the_general_way_agrees_with_the_weights(batch_norm):
    """A copy made of torch's own layers goes through autograd."""
    teacher, student = pair(4, slope=0.1, batch_norm=batch_norm)
    copies = []
    for network in (teacher, student):
        layers = []
        for i, linear in enumerate(network.layers[:-1]):
            rectifier = nn.LeakyReLU(0.1, inplace=True)
            norm = [network.norms[i]] if batch_norm else []
            layers += [linear, *([*norm, rectifier] if batch_norm == "before" else [rectifier, *norm])]
        copies.append(nn.Sequential(*layers, network.layers[-1]).eval())
    x = normal(40, INPUTS)
    known = backward_gram(teacher, student, x)
    for students in ((copies[0], copies[1]), (teacher, copies[1])):
        found = backward_gram(*students, x, batch_size=15)
        for gram, want in zip(found.values(), known.values(), strict=True):
            for a, b in zip(matrices(gram), matrices(want), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert next(iter(found)) == ("hidden1 -> 2" if batch_norm == "before" else "hidden1 -> 1")


@pytest.mark.parametrize("batch_norm", [None, "after"])
def test_channels_are_nodes_and_positions_are_summed_over(batch_norm):
    teacher, student = convolutional(1, [3, 2], batch_norm), convolutional(2, [4, 5], batch_norm)
    x = normal(6, 2, 6, 6)
    found = backward_gram(teacher, student, x)
    (v_t, d_t), (v_s, d_s) = by_hand(teacher, x), by_hand(student, x)
    for gram, t, s, g, d in zip(found.values(), v_t, v_s, d_t, d_s, strict=True):
        beta = torch.einsum("xcjhw,xckhw->jk", t, s) / 6
        h = torch.einsum("xcjhw,xckhw->jk", t * g[:, None], s * d[:, None]) / 6
        torch.testing.assert_close(gram.beta_student_teacher, beta)
        torch.testing.assert_close(gram.h_student_teacher, h)
        assert gram.beta_student_student.shape == (s.shape[2], s.shape[2])


def test_any_piecewise_linear_module():
    teacher, student = randomize(module(2, 0)), randomize(module(3, 1, inplace=True))
    x = normal(9, 1, 8, 8)
    found = backward_gram(teacher, student, x)
    assert list(found) == ["2", "5"]
    output = student(x)
    inner = student[:3](x).detach().requires_grad_()
    rows = [torch.autograd.grad(student[3:](inner)[:, c].sum(), inner)[0] for c in range(OUTPUTS)]
    torch.testing.assert_close(
        found["2"].beta_student_student, torch.einsum("cxjhw,cxkhw->jk", *[torch.stack(rows)] * 2) / 9
    )
    assert torch.equal(student(x), output)  # hooks are gone
    frozen = backward_gram(teacher.requires_grad_(False), student.requires_grad_(False), x)
    assert torch.equal(frozen["2"].h_student_teacher, found["2"].h_student_teacher)


def test_gradients_and_modes_are_left_alone():
    teacher, student = pair(3, batch_norm="before")
    backward_gram(teacher, student, normal(5, INPUTS))
    backward_gram(convolutional(1, [3]), convolutional(2, [4]), normal(5, 2, 6, 6))
    assert all(p.grad is None and p.requires_grad for p in student.parameters()) and not student.training


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.relu = nn.Linear(INPUTS, INPUTS, dtype=F64), nn.ReLU()
        self.top = nn.Linear(INPUTS, OUTPUTS, dtype=F64)

    def forward(self, x):
        return self.top(self.relu(self.linear(self.relu(self.linear(x)))))


def training(network):
    return network.train()


def dropout_in_training():
    network = module(2, 0)
    network[8].train()
    return network


def sequence(*layers):
    return nn.Sequential(*layers).to(F64).eval()


T, S = pair(3)
X = normal(8, INPUTS)
IMAGES = normal(4, 1, 8, 8)
POSITIONS = sequence(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, OUTPUTS))
RELUS = sequence(nn.Linear(INPUTS, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, OUTPUTS))
GELUS = sequence(nn.Linear(INPUTS, 3), nn.ReLU(), nn.Linear(3, 3), nn.GELU(), nn.Linear(3, OUTPUTS))
BAD = {
    "depth": (T, pair(4)[1], X, {}, ValueError, "student: got 3 hidden layers; takes the depth of the teacher, 2"),
    "outputs": (T, fs.MLP([INPUTS, 4, 4, 3], dtype=F64), X, {}, ValueError, "student: got 3 outputs"),
    "inputs": (T, fs.MLP([6, 4, 4, OUTPUTS], dtype=F64), X, {}, ValueError, "student: got 6 inputs"),
    "no hidden layer": (
        fs.MLP([INPUTS, OUTPUTS], dtype=F64),
        S,
        X,
        {},
        ValueError,
        "teacher: got a network without hidden",
    ),
    "training": (
        T,
        training(pair(3, batch_norm="after")[1]),
        X,
        {},
        ValueError,
        r"student, layer 'norms.0': got BatchNorm1d with the statistics of the batch; takes evaluation mode",
    ),
    "no running statistics": (
        RELUS,
        sequence(nn.Linear(INPUTS, 3), nn.BatchNorm1d(3, track_running_stats=False), nn.ReLU(), *list(RELUS)[2:]),
        X,
        {},
        ValueError,
        "student, layer '1': got BatchNorm1d with the statistics of the batch",
    ),
    "teacher in training": (
        training(pair(3, batch_norm="before")[0]),
        S,
        X,
        {},
        ValueError,
        "teacher, layer 'norms.0': got",
    ),
    "dropout": (
        module(2, 0),
        dropout_in_training(),
        IMAGES,
        {},
        ValueError,
        "student, layer '8': got Dropout in training mode",
    ),
    "layer": (RELUS, GELUS, X, {}, TypeError, "student, layer '3': got GELU; takes linear, convolutional"),
    "no modules": (
        RELUS,
        sequence(nn.Linear(INPUTS, OUTPUTS)),
        X,
        {},
        TypeError,
        "student: got a network without nn.ReLU",
    ),
    "called twice": (RELUS, Twice(), X, {}, ValueError, "student: got 1 hidden layers"),
    "a second call": (
        sequence(nn.Linear(INPUTS, 3), nn.ReLU(), nn.Linear(3, OUTPUTS)),
        Twice(),
        X,
        {},
        ValueError,
        "student, layer 'relu': got a second call",
    ),
    "outputs of modules": (
        RELUS,
        sequence(*list(RELUS)[:4], nn.Linear(3, 2)),
        X,
        {},
        ValueError,
        "student: got 2 outputs",
    ),
    "positions": (
        POSITIONS,
        sequence(
            nn.Conv2d(1, 2, 1),
            *list(POSITIONS)[1:4],
            nn.AvgPool2d(2, 1, 0),
            nn.MaxPool2d(2, 1),
            nn.Flatten(),
            nn.Linear(32, OUTPUTS),
        ),
        IMAGES,
        {},
        ValueError,
        "student, layer '1': got positions",
    ),
    "images out": (
        module(2, 0),
        sequence(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.ReLU()),
        IMAGES,
        {},
        ValueError,
        "student: got outputs of shape",
    ),
    "augmented modules": (RELUS, RELUS, X, {"augmented": True}, ValueError, "augmented: got True"),
    "no module": (T, [1], X, {}, TypeError, "student: got list"),
    "width": (T, S, X[:, :3], {}, ValueError, r"data, batch 0: got shape \[8, 3\]"),
    "width of modules": (RELUS, RELUS, X[:, :3], {}, RuntimeError, "teacher: got inputs of shape"),
    "images": (convolutional(1, [2, 2]), convolutional(2, [2, 2]), IMAGES, {}, ValueError, "data, batch 0: got shape"),
    "dtype": (T, S, X.float(), {}, TypeError, "data, batch 0: got dtype torch.float32"),
    "NaN": (T, S, X.masked_fill(X > 1, float("nan")), {}, ValueError, "data, batch 0: got .* NaN"),
    "no samples": (T, S, X[:0], {}, ValueError, "data: got 0 samples"),
    "batch size": (T, S, X, {"batch_size": 0}, ValueError, "batch_size: got 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    teacher, student, x, options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        backward_gram(teacher, student, x, **options)


def test_weights_that_are_not_finite():
    teacher, student = pair(3)
    with torch.no_grad():
        student.layers[1].bias[2] = float("inf")
    with pytest.raises(ValueError, match="student, bias of layer 2: got 1 of"):
        backward_gram(teacher, student, X)
    teacher, student = convolutional(1, [3, 2]), convolutional(2, [4, 5])
    with torch.no_grad():
        student.head.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"data, hidden1: got .* NaN"):
        backward_gram(teacher, student, normal(2, 2, 6, 6))


def test_half_precision():
    """Small integers, which bfloat16 holds: the matrices are those of float64."""
    draw = torch.Generator().manual_seed(0)

    def layers(*widths):
        return [(torch.randint(-2, 3, (n, d), generator=draw).double(), None) for d, n in pairwise(widths)]

    teacher, student = fs.MLP.from_weights(layers(3, 2, 3, 2)), fs.MLP.from_weights(layers(3, 4, 3, 2))
    x = torch.randint(-2, 3, (16, 3), generator=draw).double()
    exact = backward_gram(teacher, student, x)
    found = backward_gram(teacher.bfloat16(), student.bfloat16(), x.bfloat16())
    for name, gram in found.items():
        for a, b in zip(matrices(gram), matrices(exact[name]), strict=True):
            assert torch.equal(a, b) and b.any()


def test_dropout_of_nothing_may_train():
    dropping = sequence(*list(RELUS)[:4], nn.Dropout(0.0), RELUS[4])
    dropping[4].train()
    gram, want = (list(backward_gram(RELUS, network, X).values()) for network in (dropping, RELUS))
    assert torch.equal(gram[0].beta_student_student, want[0].beta_student_student)
