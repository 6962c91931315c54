"""Teacher and student networks: fully connected and convolutional, with (leaky) ReLU and optional batch norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from fastspec.initialization import Rule, WeightLayer, initialize_
from fastspec.ops.checks import check_floating, check_integer, check_real, check_same_kind, refuse, shape
from fastspec.randomness import generator
from fastspec.relu_network import BatchNorm, Layer, ReluNetwork, check_layer, check_widths, norms_for

AnyNetwork = TypeVar("AnyNetwork", "MLP", "ConvNet")


class MLP(ReluNetwork):
    """Fully connected ReLU network; the top layer is linear.

    widths: inputs, hidden nodes of each layer, outputs; positive integers, at least two.
    bias: for all linear layers, or one value for each.
    negative_slope: of the ReLU, in [0, 1].
    batch_norm: None, "before" or "after" the ReLU of every hidden layer.
    seed: of the initial weights, which have the distribution of torch's own layers.
    Raises ValueError or TypeError naming the argument.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        bias: bool | Sequence[bool] = True,
        negative_slope: float = 0.0,
        batch_norm: BatchNorm | None = None,
        seed: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__(negative_slope, batch_norm)
        self.widths = check_widths("widths", widths, at_least=2)
        self.input_shape = (self.widths[0],)
        if not isinstance(bias, (bool, Sequence)):
            refuse("bias", repr(bias), "True, False, or one of them for each linear layer", TypeError)
        biases = [bias] * (len(widths) - 1) if isinstance(bias, bool) else list(bias)
        if len(biases) != len(widths) - 1:
            refuse("bias", f"{len(biases)} values", f"one value, or one for each of {len(widths) - 1} linear layers")
        factory = _factory(dtype, device)
        sizes = zip(pairwise(self.widths), biases, strict=True)
        self.linears = nn.ModuleList(_empty(nn.Linear, i, o, bias=b, **factory) for (i, o), b in sizes)
        self.norms = norms_for(nn.BatchNorm1d, batch_norm, self.widths[1:-1], **factory)
        self._reset(seed)

    @classmethod
    def from_weights(cls, layers: Sequence[Layer], negative_slope: float = 0.0) -> MLP:
        """A network with copies of the given layers, lowest first: (weight [out, in], bias [out] or None) each.

        Raises ValueError or TypeError for widths that do not follow each other, values that are NaN or infinite,
        and mixed dtypes or devices.
        """
        if not layers:
            refuse("layers", "an empty sequence", "at least one (weight, bias or None)")
        for i, layer in enumerate(layers):
            weight, bias = check_layer(f"layers[{i}]", layer)
            first = layers[0][0]
            check_same_kind(**{"layers[0] weight": first, f"layers[{i}] weight": weight, f"layers[{i}] bias": bias})
            below = layers[i - 1][0] if i else weight.T
            if weight.shape[1] != below.shape[0]:
                refuse(f"layers[{i}] weight", shape(weight), f"[out, {below.shape[0]}], the nodes of the layer below")
        widths = [first.shape[1], *(len(weight) for weight, _ in layers)]
        biases = [bias is not None for _, bias in layers]
        network = cls(widths, bias=biases, negative_slope=negative_slope, dtype=first.dtype, device=first.device)
        with torch.no_grad():
            for linear, (weight, bias) in zip(network.layers, layers, strict=True):
                linear.weight.copy_(weight)
                if linear.bias is not None and bias is not None:
                    linear.bias.copy_(bias)
        return network

    @property
    def layers(self) -> list[WeightLayer]:
        return list(self.linears)  # type: ignore[arg-type]

    @property
    def hidden_widths(self) -> list[int]:
        """Nodes of each hidden layer."""
        return self.widths[1:-1]

    def weights(self) -> list[Layer]:
        """Copies of (weight [out, in], bias [out] or None), lowest first, batch norm left out."""
        return [(_copy(layer.weight), None if layer.bias is None else _copy(layer.bias)) for layer in self.layers]

    def folded(self) -> list[Layer]:
        """The linear layers of the batch-norm-free network with the same hidden ReLU outputs and outputs.

        Batch norm as in evaluation mode. Before the ReLU it goes into its own layer, after the ReLU into the next one.
        Computed in float64, returned in the network's dtype. Bias None only where nothing adds one.
        """
        layers = self.weights()
        for i, norm in enumerate(self.norms):
            gain, shift = _affine(norm)
            if self.batch_norm == "before":
                layers[i] = _fold_output(*layers[i], gain, shift)
            else:
                layers[i + 1] = _fold_input(*layers[i + 1], gain, shift)
        return layers

    def architecture(self) -> dict[str, Any]:
        return {
            "widths": list(self.widths),
            "bias": [linear.bias is not None for linear in self.layers],
            "negative_slope": self.negative_slope,
            "batch_norm": self.batch_norm,
        }


class ConvNet(ReluNetwork):
    """Convolutional ReLU network: convolutions of stride 1, then one linear layer on all positions of the last.

    input_shape: (channels, height, width). channels: of each hidden layer. outputs: of the linear layer.
    kernel, padding: of every convolution. The other arguments as in `MLP`.
    Raises ValueError or TypeError naming the argument, also where nothing is left of the image.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        channels: Sequence[int],
        outputs: int,
        *,
        kernel: int = 3,
        padding: int = 0,
        bias: bool = True,
        negative_slope: float = 0.0,
        batch_norm: BatchNorm | None = None,
        seed: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__(negative_slope, batch_norm)
        depth, height, width = check_widths("input_shape", _three(input_shape), at_least=3)
        self.input_shape = (depth, height, width)
        self.channels = check_widths("channels", channels, at_least=1)
        check_integer("outputs", outputs)
        check_integer("kernel", kernel)
        check_integer("padding", padding, 0)
        shrink = len(self.channels) * (kernel - 1 - 2 * padding)
        if min(height, width) - shrink < 1:
            takes = f"height and width of at least {1 + shrink} for {len(self.channels)} layers with kernel {kernel}"
            refuse("input_shape", repr(self.input_shape), takes)
        self.outputs, self.kernel, self.padding = outputs, kernel, padding
        factory = _factory(dtype, device)
        self.convs = nn.ModuleList(
            _empty(nn.Conv2d, i, o, kernel, padding=padding, bias=bias, **factory)
            for i, o in pairwise([depth, *self.channels])
        )
        positions = (height - shrink) * (width - shrink)
        self.head = _empty(nn.Linear, self.channels[-1] * positions, outputs, bias=bias, **factory)
        self.norms = norms_for(nn.BatchNorm2d, batch_norm, self.channels, **factory)
        self._reset(seed)

    @property
    def layers(self) -> list[WeightLayer]:
        return [*self.convs, self.head]  # type: ignore[list-item]

    @property
    def hidden_widths(self) -> list[int]:
        """Channels of each hidden layer."""
        return self.channels

    def architecture(self) -> dict[str, Any]:
        return {
            "input_shape": self.input_shape,
            "channels": list(self.channels),
            "outputs": self.outputs,
            "kernel": self.kernel,
            "padding": self.padding,
            "bias": self.head.bias is not None,
            "negative_slope": self.negative_slope,
            "batch_norm": self.batch_norm,
        }


def student_widths(teacher_widths: Sequence[int], multi: float | Sequence[float]) -> list[int]:
    """Hidden widths of a student: `multi` (>= 1; one number, or one per layer) times the teacher's, rounded up."""
    if not isinstance(multi, (int, float, Sequence)):
        refuse("multi", type(multi).__name__, "one number, or one for each hidden layer", TypeError)
    multis = [multi] * len(teacher_widths) if isinstance(multi, (int, float)) else list(multi)
    if len(multis) != len(teacher_widths):
        refuse("multi", f"{len(multis)} values", f"one number, or one for each of {len(teacher_widths)} hidden layers")
    for value in multis:
        check_real("multi", value, "a finite number of at least 1", 1.0)
    # the subtraction undoes rounding as in 1.1 * 50 = 55.00000000000001
    return [math.ceil(value * width - 1e-9) for value, width in zip(multis, teacher_widths, strict=True)]


def student_like(
    teacher: AnyNetwork,
    *,
    multi: float | Sequence[float] = 1,
    seed: int = 0,
    init: Rule = "default",
    std: float | None = None,
    scale: float = 1.0,
    batch_norm: BatchNorm | Literal["same"] | None = "same",
) -> AnyNetwork:
    """A student with the teacher's inputs, outputs, depth, slope, biases, dtype and device, and its own weights.

    multi: >= 1, how many times wider every hidden layer is; one number or one per hidden layer; rounded up.
    init, std, scale: the initial weights, see `fastspec.initialization.initialize_`.
    batch_norm: of the student; "same" is the teacher's placement. It starts as identity, whatever the teacher's is.
    Raises ValueError or TypeError naming the argument.
    """
    if not isinstance(teacher, (MLP, ConvNet)):
        refuse("teacher", type(teacher).__name__, "an MLP or a ConvNet", TypeError)
    options = teacher.architecture()
    widths = student_widths(teacher.hidden_widths, multi)
    if isinstance(teacher, MLP):
        options["widths"][1:-1] = widths
    else:
        options["channels"] = widths
    if batch_norm != "same":
        options["batch_norm"] = batch_norm
    like = teacher.layers[0].weight
    student = type(teacher)(**options, dtype=like.dtype, device=like.device)
    source = generator(seed, "student")
    initialize_(student.layers, teacher.layers, rule=init, generator=source, std=std, scale=scale)
    return student


def _factory(dtype: torch.dtype | None, device: torch.device | str | None) -> dict[str, Any]:
    if dtype is not None:
        check_floating("dtype", dtype)
    return {"dtype": dtype, "device": device}


def _empty(
    kind: Callable[..., WeightLayer], *args: Any, device: torch.device | str | None, **kwargs: Any
) -> WeightLayer:
    """A layer with unset weights, built without a draw from the global generator."""
    return kind(*args, device="meta", **kwargs).to_empty(device=device or torch.get_default_device())


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Batch norm in evaluation mode as gain and shift, float64 [nodes] each: norm(h) = gain h + shift."""
    gain = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    return gain, norm.bias.detach().double() - gain * norm.running_mean.double()


def _fold_output(weight: Tensor, bias: Tensor | None, gain: Tensor, shift: Tensor) -> Layer:
    folded_bias = shift if bias is None else gain * bias + shift
    return (gain[:, None] * weight).to(weight.dtype), folded_bias.to(weight.dtype)


def _fold_input(weight: Tensor, bias: Tensor | None, gain: Tensor, shift: Tensor) -> Layer:
    folded_bias = weight.double() @ shift + (0 if bias is None else bias)
    return (weight * gain).to(weight.dtype), folded_bias.to(weight.dtype)


def _copy(parameter: Tensor) -> Tensor:
    return parameter.detach().clone()


def _three(input_shape: Sequence[int]) -> Sequence[int]:
    if not isinstance(input_shape, Sequence) or len(input_shape) != 3:
        refuse("input_shape", repr(input_shape), "(channels, height, width)")
    return input_shape
