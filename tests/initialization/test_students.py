"""Student initialisations, as `student_like` applies them."""

from __future__ import annotations

import pytest
import torch

from fastspec.networks import MLP, ConvNet, student_like

TEACHER = MLP([20, 15, 10, 5], seed=9, dtype=torch.float64)


def pairs(student: MLP, teacher: MLP = TEACHER):
    return zip(student.weights(), teacher.weights(), strict=True)


def test_default_is_torchs_distribution():
    student = student_like(TEACHER, multi=20)
    for weight, bias in student.weights():
        bound = weight.shape[1] ** -0.5
        assert weight.abs().max() <= bound
        assert bias.abs().max() <= bound
    (first, _), *_ = student.weights()
    assert abs(float(first.std()) - (3 * 20) ** -0.5) < 0.003


def test_normal_is_the_two_layer_students():
    student = student_like(TEACHER, multi=20, init="normal")
    for weight, bias in student.weights():
        assert abs(float(weight.std()) / 0.005 - 1) < 0.05
        assert (bias == 0).all()
    (other, _), *_ = student_like(TEACHER, multi=20, init="normal", std=0.5).weights()
    torch.testing.assert_close(other, 100 * student.weights()[0][0])


def test_perturb_adds_noise_and_leaves_further_nodes_noise_alone():
    exact = student_like(TEACHER, init="perturb", std=0.0)
    for (w, b), (w_t, b_t) in pairs(exact):
        assert w.equal(w_t)
        assert b.equal(b_t)
    wide = student_like(TEACHER, multi=2, init="perturb")
    for (w, b), (w_t, b_t) in pairs(wide):
        noise = w.clone()
        noise[: w_t.shape[0], : w_t.shape[1]] -= w_t
        assert abs(float(noise.std()) / 0.1 - 1) < 0.15
        bias_noise = b.clone()
        bias_noise[: len(b_t)] -= b_t
        assert 0 < bias_noise.abs().max() < 0.5


def test_perturb_of_a_convolutional_network():
    teacher = ConvNet((1, 6, 6), [2, 3], 4, seed=1)
    student = student_like(teacher, multi=2, init="perturb", std=0.0)
    x = torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(student(x), teacher(x))
    torch.testing.assert_close(student.activations(x)[1][:, :3], teacher.activations(x)[1])


def test_same_direction_is_the_teacher_at_the_norm_of_the_default_student():
    student, default = student_like(TEACHER, seed=4, init="same_direction"), student_like(TEACHER, seed=4)
    for (w, b), (w_t, b_t), (w_d, _) in zip(student.weights(), TEACHER.weights(), default.weights(), strict=True):
        ratio = w_d.norm() / w_t.norm()
        assert abs(ratio - 1) > 1e-6
        torch.testing.assert_close(w, ratio * w_t)
        torch.testing.assert_close(b, ratio * b_t)


def test_same_sign_keeps_magnitudes_and_takes_signs():
    teacher = MLP([20, 15, 10, 5], seed=9, dtype=torch.float64)
    teacher.linears[0].weight.data[0] = 0
    student, default = student_like(teacher, seed=4, init="same_sign"), student_like(teacher, seed=4)
    for (w, b), (w_t, b_t), (w_d, b_d) in zip(student.weights(), teacher.weights(), default.weights(), strict=True):
        assert w.abs().equal(w_d.abs())
        assert b.abs().equal(b_d.abs())
        assert w.sign()[w_t != 0].equal(w_t.sign()[w_t != 0])
        assert b.sign().equal(b_t.sign())
    assert student.linears[0].weight[0].equal(default.linears[0].weight[0])


@pytest.mark.parametrize(("init", "side"), [("adv", -1), ("help", 1)])
def test_adv_and_help_flip_first_layer_nodes(init, side):
    normal, student = (student_like(TEACHER, multi=3, seed=2, init=i).weights() for i in ("normal", init))
    last = TEACHER.weights()[0][0][-1]
    before, after = normal[0][0] @ last, student[0][0] @ last
    assert (before.sign() == -side).any()
    assert (after.sign() == side).all()
    torch.testing.assert_close(after.abs(), before.abs())
    assert student[0][0].abs().equal(normal[0][0].abs())
    assert student[1][0].equal(normal[1][0])


def test_scale_multiplies_everything():
    for (w, b), (w_1, b_1) in pairs(student_like(TEACHER, scale=0.1), student_like(TEACHER)):
        torch.testing.assert_close(w, 0.1 * w_1)
        torch.testing.assert_close(b, 0.1 * b_1)


def test_float32_students_are_rounded_float64_students():
    narrow = student_like(MLP([20, 15, 10, 5]), init="normal")
    for (w, _), (wide, _) in pairs(narrow, student_like(TEACHER, init="normal")):
        assert w.dtype == torch.float32
        torch.testing.assert_close(w.double(), wide)


def test_bias_free_students():
    teacher = MLP([4, 3, 2], bias=False)
    for init in ("default", "normal", "perturb", "same_direction", "same_sign", "adv", "help"):
        assert all(bias is None for _, bias in student_like(teacher, init=init).weights())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "xavier"}, "init: got 'xavier'; takes one of default, normal"),
        ({"std": 0.1}, "std: got 0.1; takes no value with init='default'"),
        ({"init": "normal", "std": -1.0}, "std: got -1.0"),
        ({"init": "normal", "std": float("inf")}, "std: got inf"),
        ({"scale": 0.0}, "scale: got 0.0; takes a finite positive number"),
        ({"scale": float("nan")}, "scale: got nan"),
        ({"init": "same_sign", "multi": 2}, "multi: .*takes 1"),
        ({"init": "same_direction", "multi": 2}, "multi: .*takes 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        student_like(TEACHER, **options)


def test_same_direction_needs_a_direction():
    teacher = MLP.from_weights([(torch.zeros(3, 2), None)])
    with pytest.raises(ValueError, match="teacher: got a layer whose weights are all 0"):
        student_like(teacher, init="same_direction")
