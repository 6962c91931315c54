"""Small networks, inputs for them, and what `measure` must say of them: everything materialised in float64."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from fastspec.measurement import Measurement
from fastspec.networks import MLP
from fastspec.populations import Population

SAMPLES, INPUTS, OUTPUTS = 101, 6, 3


def network(*hidden: int, seed: int = 0, dtype: torch.dtype = torch.float64, **options) -> MLP:
    """A network whose batch norms, if any, have statistics unlike the identity's."""
    made = MLP([INPUTS, *hidden, OUTPUTS], seed=seed, dtype=dtype, **options)
    generator = torch.Generator().manual_seed(seed)
    for norm in made.norms:
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.2)
    return made


def inputs(samples: int = SAMPLES, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(samples, INPUTS, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype)


def forward(net: MLP, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Hidden ReLU outputs and outputs in float64 by torch's own modules, in evaluation mode."""
    net, x = copy.deepcopy(net).double().eval(), x.double()
    relu, hidden = torch.nn.LeakyReLU(net.negative_slope), []
    for i, linear in enumerate(net.linears[:-1]):
        x = linear(x)
        x = net.norms[i](x) if net.batch_norm == "before" else x
        x = relu(x)
        hidden.append(x)
        x = net.norms[i](x) if net.batch_norm == "after" else x
    return hidden, net.linears[-1](x)


@torch.no_grad()
def check(result: Measurement, teacher: MLP, student: MLP, x: Tensor, tolerance: float = 1e-10) -> None:
    """Compare with means, scatters, counts and loss of all activations at once."""
    (t_hidden, t_output), (s_hidden, s_output) = forward(teacher, x), forward(student, x)
    assert list(result.layers) == [f"hidden{i + 1}" for i in range(len(t_hidden))]
    assert result.samples == len(x)
    close = {"rtol": tolerance, "atol": tolerance}
    for moments, t, s in zip(result.layers.values(), t_hidden, s_hidden, strict=True):
        assert int(moments.count) == len(x)
        t_centred, s_centred = t - t.mean(0), s - s.mean(0)
        torch.testing.assert_close(moments.teacher_mean, t.mean(0), **close)
        torch.testing.assert_close(moments.student_mean, s.mean(0), **close)
        torch.testing.assert_close(moments.teacher_scatter, t_centred.square().sum(0), **close)
        torch.testing.assert_close(moments.student_scatter, s_centred.square().sum(0), **close)
        torch.testing.assert_close(moments.cross_scatter, t_centred.T @ s_centred, **close)
        assert moments.teacher_active.tolist() == (t > 0).sum(0).tolist()
        assert moments.student_active.tolist() == (s > 0).sum(0).tolist()
        if moments.coactive is not None:
            assert moments.coactive.tolist() == ((t > 0).double().T @ (s > 0).double()).long().tolist()
        if moments.student_gram is not None:
            torch.testing.assert_close(moments.teacher_gram, t_centred.T @ t_centred, **close)
            torch.testing.assert_close(moments.student_gram, s_centred.T @ s_centred, **close)
    assert result.loss.dtype == torch.float64
    torch.testing.assert_close(result.loss, (t_output - s_output).square().sum(1).mean() / 2, **close)


def population(dtype: torch.dtype = torch.float64) -> tuple[MLP, Population]:
    teacher = network(4, dtype=dtype)
    return teacher, Population.two_layer(teacher, multi=[3, 1, 2], seeds=[5, 6], std=0.7)
