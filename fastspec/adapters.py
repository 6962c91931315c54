"""Hidden activations of any `torch.nn.Module`, by forward hooks on its named submodules."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from fastspec.ops.checks import check_same_kind, refuse, shape
from fastspec.relu_network import ReluNetwork

Layers: TypeAlias = "Mapping[str, str] | Sequence[str | tuple[str, str]]"


class Hidden(NamedTuple):
    """What one forward pass leaves."""

    names: list[str]  # of the layers, lowest first
    activations: list[Tensor]  # [samples, nodes, *space] each
    output: object  # whatever the network returns


class Tap(Protocol):
    """A network with a way to its hidden activations; a context manager, so that hooks always come off again."""

    count: int  # hidden layers

    def __call__(self, x: Tensor) -> Hidden: ...
    def __enter__(self) -> Tap: ...
    def __exit__(self, *_: object) -> None: ...


class ReluTap:
    """A tap on a network of this package, which hands out its activations itself; layers are hidden1, hidden2, ..."""

    def __init__(self, side: str, network: ReluNetwork):
        self.side, self.network, self.count = side, network, len(network.layers) - 1

    def __call__(self, x: Tensor) -> Hidden:
        try:
            activations, output = self.network.activations_and_output(x)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{self.side}, {error}") from None
        return Hidden([f"hidden{i + 1}" for i in range(self.count)], activations, output)

    def __enter__(self) -> ReluTap:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class HookTap:
    """A tap on any module: hooks on the submodules `names`, or on every ReLU and LeakyReLU, in the order of calls."""

    def __init__(self, side: str, network: nn.Module, names: list[str] | None):
        self.side, self.network, self.names = side, network, names
        modules = dict(network.named_modules())
        del modules[""]
        chosen: dict[str, nn.Module]
        if names is None:
            chosen = {name: m for name, m in modules.items() if isinstance(m, (nn.ReLU, nn.LeakyReLU))}
            if not chosen:
                refuse(
                    side, "a network without ReLU or LeakyReLU modules", "a network that has some, or `layers` by name"
                )
        else:
            chosen = {name: modules[name] if name in modules else _unknown(side, name, list(modules)) for name in names}
        self._modules, self.count = chosen, len(names or chosen)
        self._seen: dict[str, tuple[Tensor, int | None]] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> HookTap:
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._hook(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._seen.clear()

    def __call__(self, x: Tensor) -> Hidden:
        self._seen.clear()
        output = forward(self.side, self.network, x)
        missing = [name for name in self._modules if name not in self._seen]
        if missing:
            refuse(
                self._layer(missing[0]), "no call in the forward pass", "a module that every forward pass calls once"
            )
        names = self.names if self.names is not None else list(self._seen)
        hidden = Hidden(names, [self._checked(name, len(x)) for name in names], output)
        self._seen.clear()
        return hidden

    def _hook(self, name: str):
        def keep(module: nn.Module, inputs: object, output: object) -> None:
            if name in self._seen:
                takes = "a module called once; name modules whose outputs are the activations, such as whole blocks"
                refuse(self._layer(name), "a second call in one forward pass", takes)
            if not isinstance(output, Tensor):
                refuse(self._layer(name), f"an output of type {type(output).__name__}", "one tensor", TypeError)
            self._seen[name] = output, _version(output)

        return keep

    def _checked(self, name: str, samples: int) -> Tensor:
        """The activations of layer `name`, unless a later module changed them in place."""
        output, version = self._seen[name]
        if _version(output) != version:
            takes = "the name of that later module (such as an in-place ReLU), or an output that nothing changes"
            refuse(self._layer(name), "an output that a later module overwrote in place", takes)
        if output.dim() < 2 or len(output) != samples:
            refuse(self._layer(name), f"an output of shape {list(output.shape)}", f"[{samples}, nodes, *space]")
        return output

    def _layer(self, name: str) -> str:
        return f"layers, {self.side}'s {name!r}"


def tap_pair(teacher: nn.Module, student: nn.Module, layers: Layers | None) -> tuple[Tap, Tap]:
    """Taps with as many layers on either side; which ones `layers` says is told by `measure`."""
    if layers is not None:
        pairs = _pairs(layers)
        return (
            HookTap("teacher", teacher, [t for t, _ in pairs]),
            HookTap("student", student, [s for _, s in pairs]),
        )
    taps = _default_tap("teacher", teacher), _default_tap("student", student)
    if taps[0].count != taps[1].count:
        got = f"None, with {taps[0].count} hidden activations in the teacher and {taps[1].count} in the student"
        refuse("layers", got, "names of the layers to pair, as {'teacher.layer': 'student.layer'}")
    return taps


def pair_by_name(teacher: Hidden, student: Hidden) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, teacher's activations, student's activations) of every layer; unequal names as 'teacher -> student'."""
    sides = zip(teacher.names, student.names, teacher.activations, student.activations, strict=True)
    for t_name, s_name, t, s in sides:
        yield t_name if t_name == s_name else f"{t_name} -> {s_name}", t, s


@contextmanager
def evaluation_mode(*networks: nn.Module) -> Iterator[None]:
    """Every submodule in evaluation mode; afterwards each one in its own mode of before."""
    before = [(module, module.training) for network in networks for module in network.modules()]
    try:
        for module, _ in before:
            module.training = False
        yield
    finally:
        for module, training in before:
            module.training = training


def check_placement(place: str, x: Tensor, **networks: nn.Module) -> None:
    """Check that inputs are where the networks are, and of their dtype if they have only one."""
    for side, network in networks.items():
        weights = [p for p in network.parameters() if p.is_floating_point()]
        if not weights or len({(p.dtype, p.device) for p in weights}) > 1:
            continue
        like = x if x.is_floating_point() else x.to(weights[0].dtype)
        check_same_kind(**{side: weights[0], place: like})


def forward(side: str, network: nn.Module, x: Tensor) -> Any:
    """The output of any module; torch's errors about inputs that do not fit name the network and the inputs."""
    try:
        return network(x)
    except RuntimeError as error:
        refuse(side, f"inputs of {shape(x)} and {x.dtype}, where it fails ({error})", "inputs it can take", type(error))


def _default_tap(side: str, network: nn.Module) -> Tap:
    return ReluTap(side, network) if isinstance(network, ReluNetwork) else HookTap(side, network, None)


def _pairs(layers: Layers) -> list[tuple[str, str]]:
    takes = "{'teacher.layer': 'student.layer', ...}, names that both networks have, or a list of pairs of names"
    if isinstance(layers, str) or not isinstance(layers, (Mapping, Sequence)):
        refuse("layers", repr(layers), takes, TypeError)
    entries = list(layers.items()) if isinstance(layers, Mapping) else list(layers)
    pairs = [(entry, entry) if isinstance(entry, str) else entry for entry in entries]
    for pair in pairs:
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(name, str) for name in pair)):
            refuse("layers", repr(pair), takes, TypeError)
    if not pairs or len(set(map(tuple, pairs))) < len(pairs):
        refuse("layers", "a pair twice" if pairs else "no layers", takes)
    return [(t, s) for t, s in pairs]


def _unknown(side: str, name: str, known: list[str]) -> nn.Module:
    closest = difflib.get_close_matches(name, known, n=4, cutoff=0.4) or known[:8]
    refuse("layers", f"{name!r}", f"names of the {side}'s modules; the closest are {', '.join(map(repr, closest))}")


def _version(tensor: Tensor) -> int | None:
    """Counts changes in place; inference tensors have no count."""
    return None if tensor.is_inference() else tensor._version
