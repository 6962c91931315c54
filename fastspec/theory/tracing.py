"""Pre-activations, activations, gates and backward maps of any piecewise linear network, by autograd."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu
from torch.nn.modules import batchnorm, conv, dropout, padding, pooling

from fastspec.adapters import forward
from fastspec.ops.checks import refuse
from fastspec.relu_network import ReluNetwork
from fastspec.theory.chains import check_statistics, gates_of

LINEAR = (
    nn.Linear,
    conv._ConvNd,
    batchnorm._BatchNorm,
    dropout._DropoutNd,
    nn.Flatten,
    nn.Unflatten,
    nn.Identity,
    padding._ConstantPadNd,
    pooling._AvgPoolNd,
    pooling._AdaptiveAvgPoolNd,
    pooling._MaxPoolNd,
    pooling._AdaptiveMaxPoolNd,
)
RELU = (nn.ReLU, nn.LeakyReLU)
TAKES = "linear, convolutional, pooling, batch-norm, dropout, padding and flattening layers, nn.ReLU and nn.LeakyReLU"


class Pass(NamedTuple):
    """What a forward pass of N samples leaves, hidden layers lowest first; the graph is kept for backward passes."""

    names: list[str]
    pre_activations: list[Tensor]  # [N, nodes, *space] each
    activations: list[Tensor]
    gates: list[Tensor]  # 1, or the slope where the pre-activation is not above 0
    output: Tensor  # [N, C]

    def backward_map(self, output: int) -> tuple[Tensor, ...]:
        """V of one output at every hidden layer, [N, nodes, *space] each."""
        rows = torch.zeros_like(self.output)
        rows[:, output] = 1
        return _gradients(self.output, self.activations, rows)

    def pull_back(self, rows: Tensor) -> tuple[Tensor, ...]:
        """V^T rows [N, nodes, *space] at every hidden layer, for rows [N, C]."""
        return _gradients(self.output, self.activations, rows)

    def pull_back_to_pre_activations(self, rows: Tensor) -> tuple[Tensor, ...]:
        """D V^T rows, [N, nodes, *space] at every hidden layer, for rows [N, C]."""
        return _gradients(self.output, self.pre_activations, rows)


class Tracer(Protocol):
    """A network that hands out passes."""

    hidden: int  # hidden layers

    def __call__(self, x: Tensor, place: str = "x") -> Pass: ...


def tracers(teacher: nn.Module, student: nn.Module) -> tuple[Tracer, Tracer]:
    """Tracers of two networks of equal depth whose outputs do not depend on other samples."""
    for side, network in (("teacher", teacher), ("student", student)):
        check_statistics(side, network)
    pair = tracer("teacher", teacher), tracer("student", student)
    check_depths(*pair)
    return pair


def check_depths(teacher: Tracer, student: Tracer) -> None:
    if teacher.hidden != student.hidden:
        refuse("student", f"{student.hidden} hidden layers", f"the depth of the teacher, {teacher.hidden}")


def tracer(side: str, network: nn.Module) -> Tracer:
    """The tracer of a network of this package, or of any other; ValueError or TypeError naming an unsupported layer."""
    return _ReluTracer(side, network) if isinstance(network, ReluNetwork) else _HookTracer(side, network)


@contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """Buffers, such as running statistics, as they were before."""
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(before[name])


class _ReluTracer:
    def __init__(self, side: str, network: ReluNetwork):
        self.side, self.network, self.hidden = side, network, len(network.layers) - 1
        if not self.hidden:
            refuse(side, "a network without hidden layers", "at least one hidden layer")

    def __call__(self, x: Tensor, place: str = "x") -> Pass:
        network, wanted = self.network, self.network.input_shape
        if x.shape[1:] != wanted:
            refuse(place, f"shape {list(x.shape)}", f"[samples, {', '.join(map(str, wanted))}]")
        pre_activations, activations = [], []
        with torch.enable_grad():
            x = leaf(x)
            for i, layer in enumerate(network.layers[:-1]):
                x = layer(x)
                if network.batch_norm == "before":
                    x = network.norms[i](x)
                pre_activations.append(x)
                x = leaky_relu(x, network.negative_slope)
                activations.append(x)
                if network.batch_norm == "after":
                    x = network.norms[i](x)
            output = network.layers[-1](x.flatten(1))
        names = [f"hidden{i + 1}" for i in range(self.hidden)]
        slopes = [network.negative_slope] * self.hidden
        return Pass(names, pre_activations, activations, _gates(pre_activations, slopes), output)


class _HookTracer:
    """Hooks on every nn.ReLU and nn.LeakyReLU, in the order of calls; copies keep in-place layers from what is kept."""

    def __init__(self, side: str, network: nn.Module):
        self.side, self.network = side, network
        self.rectifiers = dict(_rectifiers(side, network))
        self.hidden = len(self.rectifiers)
        if not self.hidden:
            refuse(side, "a network without nn.ReLU or nn.LeakyReLU modules", "a network that has some", TypeError)

    def __call__(self, x: Tensor, place: str = "x") -> Pass:
        before: dict[str, Tensor] = {}
        after: dict[str, Tensor] = {}

        def on_input(name: str):
            def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
                if name in before:
                    refuse(f"{self.side}, layer {name!r}", "a second call in one forward pass", "a module called once")
                before[name] = inputs[0]
                return (inputs[0].clone(),)

            return keep

        def on_output(name: str):
            def keep(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
                after[name] = output
                return output.clone()

            return keep

        with ExitStack() as hooks, torch.enable_grad():
            for name, module in self.rectifiers.items():
                hooks.callback(module.register_forward_pre_hook(on_input(name)).remove)
                hooks.callback(module.register_forward_hook(on_output(name)).remove)
            output = forward(self.side, self.network, leaf(x))
        names = list(before)
        missing = [name for name in self.rectifiers if name not in before]
        if missing:
            refuse(f"{self.side}, layer {missing[0]!r}", "no call in the forward pass", "a module called once")
        if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != len(x):
            got = f"outputs of shape {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            refuse(self.side, got, f"a network with outputs [{len(x)}, outputs]")
        slopes = [float(getattr(self.rectifiers[name], "negative_slope", 0.0)) for name in names]
        pre_activations = [before[name] for name in names]
        return Pass(names, pre_activations, [after[name] for name in names], _gates(pre_activations, slopes), output)


def _rectifiers(side: str, module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The rectifiers of a network by name; refuses layers that are not piecewise linear."""
    if isinstance(module, RELU):
        yield name, module
    elif not isinstance(module, LINEAR):
        children = list(module.named_children())
        if not children:
            refuse(f"{side}, layer {name!r}" if name else side, type(module).__name__, TAKES, TypeError)
        for child_name, child in children:
            yield from _rectifiers(side, child, f"{name}.{child_name}" if name else child_name)


def leaf(x: Tensor) -> Tensor:
    """Inputs from which a graph grows, even through frozen weights."""
    return x.detach().requires_grad_() if x.is_floating_point() else x


def _gates(pre_activations: list[Tensor], slopes: list[float]) -> list[Tensor]:
    return [gates_of(z.detach(), slope) for z, slope in zip(pre_activations, slopes, strict=True)]


def _gradients(output: Tensor, inputs: list[Tensor], rows: Tensor) -> tuple[Tensor, ...]:
    options: dict[str, Any] = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    return torch.autograd.grad(output, inputs, rows, **options)
