"""Pairs of networks for the tests of the theory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fastspec as fs

INPUTS, OUTPUTS = 5, 4
DEPTHS = {2: (6,), 3: (6, 4), 4: (3, 7, 5), 5: (4, 6, 3, 5)}  # linear layers: nodes of the teacher's hidden layers
F64 = torch.float64


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=F64)


def pair(depth: int = 3, *, slope: float = 0.0, bias: bool = True, batch_norm=None, extra: int = 3):
    """A teacher and a student of unequal widths, in evaluation mode, batch norm as after training."""
    hidden = DEPTHS[depth]
    options = {"negative_slope": slope, "bias": bias, "batch_norm": batch_norm, "dtype": F64}
    teacher = fs.MLP([INPUTS, *hidden, OUTPUTS], seed=1, **options)
    student = fs.MLP([INPUTS, *(n + extra + i for i, n in enumerate(hidden)), OUTPUTS], seed=2, **options)
    for network in (teacher, student):
        randomize(network)
    return teacher.eval(), student.eval()


def randomize(network: nn.Module, seed: int = 3) -> nn.Module:
    """Weights and statistics of batch norm as after some training."""
    draw = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            tensors = layer.weight, layer.bias, layer.running_mean, layer.running_var
            for tensor, low, high in zip(tensors, (0.5, -0.5, -1, 0.5), (2, 0.5, 1, 2), strict=True):
                tensor.data.uniform_(low, high, generator=draw)
    return network


def by_hand(network: fs.MLP, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """V [N, C, nodes] and gates [N, nodes] of every hidden layer, by autograd on the network itself."""
    x = x.clone().requires_grad_()
    activations, output = network.activations_and_output(x)
    rows = [torch.autograd.grad(output[:, c].sum(), activations, retain_graph=True) for c in range(output.shape[1])]
    maps = [torch.stack([row[layer] for row in rows], 1) for layer in range(len(activations))]
    gates = [torch.full_like(a, network.negative_slope).masked_fill(a > 0, 1.0) for a in activations]
    return maps, gates


def convolutional(seed: int, channels, batch_norm=None, slope: float = 0.1, dtype=F64) -> fs.ConvNet:
    network = fs.ConvNet(
        (2, 6, 6), channels, OUTPUTS, seed=seed, batch_norm=batch_norm, negative_slope=slope, dtype=dtype
    )
    return randomize(network).eval()


def module(nodes: int, seed: int, *, inplace: bool = False) -> nn.Module:
    """A convolutional network of torch's own layers on [N, 1, 8, 8]."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, nodes, 3, padding=1), nn.BatchNorm2d(nodes), nn.ReLU(inplace=inplace), nn.MaxPool2d(2),
        nn.Conv2d(nodes, nodes + 1, 3), nn.LeakyReLU(0.2, inplace=inplace), nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(),
        nn.Linear(nodes + 1, OUTPUTS),
    ).to(F64).eval()  # fmt: skip
