"""What `mlp_sgd_step` is measured against: the same students, trained on the same batches, in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from fastspec import data, teachers
from fastspec.networks import student_like
from fastspec.ops.mlp_sgd_step import layers_of, mlp_sgd_step, parameter_count
from fastspec.ops.mlp_sgd_step.in_place import Student


@dataclass(frozen=True)
class Deep:
    """One student or P of one shape, the teacher's answers, and the batches that all of them take."""

    x: Tensor  # [N, d]
    y: Tensor  # [N, C]
    parameters: Tensor  # [K] or [P, K]
    widths: Sequence[int]
    indices: Tensor  # [steps, B]
    lr: float
    precision: str = "fp32"  # of ours and of autograd's products in bf16; tf32 is a setting of torch

    @staticmethod
    def of(widths: Sequence[int], multi: int, students: int | None, batch: int, steps: int, lr: float) -> Deep:
        """Students of `multi` times a separated teacher's hidden nodes, as they start the experiments."""
        teacher = teachers.separated(widths, weight_set=teachers.LUCK_MATTERS)
        x = data.gaussian(10_000, widths[0], std=10.0)
        networks = [student_like(teacher, multi=multi, seed=k) for k in range(students or 1)]
        flat = [torch.cat([p.detach().flatten() for p in network.parameters()]) for network in networks]
        rows = torch.randint(len(x), (steps, batch), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            y = teacher(x)
        return Deep(x, y, torch.stack(flat) if students else flat[0], networks[0].widths, rows, lr)

    @staticmethod
    def large(widths: Sequence[int], batch: int, steps: int, lr: float, device: str) -> Deep:
        """A student of random weights, which answers as its teacher would with others; two batches of samples."""
        g = torch.Generator(device).manual_seed(0)

        def drawn() -> Tensor:
            bias = [True] * (len(widths) - 1)
            flat = torch.randn(parameter_count(widths, bias), generator=g, device=device)
            for weight, b in layers_of(flat, widths, bias):
                weight.mul_((2 / weight.shape[1]) ** 0.5)
                assert b is not None
                b.zero_()
            return flat

        x = torch.randn(2 * batch, widths[0], generator=g, device=device)
        rows = torch.randint(len(x), (steps, batch), generator=g, device=device)
        empty = Deep(x, x, drawn(), widths, rows, lr)
        with torch.no_grad():
            y = network_of(empty, 0)(x)
        return replace(empty, y=y, parameters=drawn())

    def to(self, *args: Any) -> Deep:
        """As `torch.Tensor.to`; indices keep their dtype."""
        x, y, parameters = (t.to(*args) for t in (self.x, self.y, self.parameters))
        return replace(self, x=x, y=y, parameters=parameters, indices=self.indices.to(x.device))

    def head(self, steps: int) -> Deep:
        """The first steps only."""
        return replace(self, indices=self.indices[:steps])

    @property
    def students(self) -> Tensor:
        """Parameters [P, K]."""
        return self.parameters if self.parameters.dim() == 2 else self.parameters[None]


def fastspec(t: Deep) -> Tensor:
    """The op under test."""
    precision = None if t.x.dtype == torch.float64 else t.precision
    return mlp_sgd_step(t.x, t.y, t.parameters, t.widths, indices=t.indices, lr=t.lr, precision=precision).parameters


def network_of(t: Deep, k: int) -> nn.Sequential:
    """Student k as torch users write it."""
    modules: list[nn.Module] = []
    bias = [True] * (len(t.widths) - 1)
    for weight, b in layers_of(t.students[k], t.widths, bias):
        layer = nn.Linear(weight.shape[1], len(weight), device=weight.device, dtype=weight.dtype)
        layer.weight.data.copy_(weight)
        assert b is not None
        layer.bias.data.copy_(b)
        modules += [layer, nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def eager(t: Deep, *, fused: bool = False) -> Tensor:
    """autograd and torch.optim.SGD, one student after the other."""
    models = [network_of(t, k) for k in range(len(t.students))]
    done = [_trained(t, model, _WithLoss(model, t), fused) for model in models]
    return torch.stack(done) if t.parameters.dim() == 2 else done[0]


class Compiled:
    """The same with the model and its loss compiled, once for all calls."""

    def __init__(self, t: Deep, mode: str | None = None):
        self.model = network_of(t, 0)
        self.step = torch.compile(_WithLoss(self.model, t), dynamic=False, mode=mode)

    def __call__(self, t: Deep) -> Tensor:
        done = []
        for k in range(len(t.students)):
            self.model.load_state_dict(network_of(t, k).state_dict())
            done.append(_trained(t, self.model, self.step, False))
        return torch.stack(done) if t.parameters.dim() == 2 else done[0]


class CompiledWhole:
    """Loss, gradients and the step of SGD compiled as one function of a batch, once for all calls."""

    def __init__(self, t: Deep, mode: str | None = None):
        self.model = network_of(t, 0).requires_grad_(False)
        self.step = torch.compile(_WithStep(self.model, t), dynamic=False, mode=mode)

    def __call__(self, t: Deep) -> Tensor:
        done = []
        for k in range(len(t.students)):
            self.model.load_state_dict(network_of(t, k).state_dict())
            for rows in t.indices:
                self.step(t.x[rows], t.y[rows])
            done.append(torch.cat([p.flatten() for p in self.model.parameters()]))
        return torch.stack(done) if t.parameters.dim() == 2 else done[0]


def by_hand(t: Deep) -> Tensor:
    """The products as one writes them by hand into kept memory, the update in the product of the weight gradient."""
    flat, batch = t.parameters.clone(), t.indices.shape[1]
    student = Student(flat, None, batch, t.widths, [True] * (len(t.widths) - 1), 0.0)
    for rows in t.indices:
        x, y = (table[rows].expand(*flat.shape[:-1], -1, -1) for table in (t.x, t.y))
        student.backward(x, student.forward(x) - y, 1.0, -t.lr / batch, None)
    return flat


def _trained(t: Deep, model: nn.Module, step: Callable[..., Tensor], fused: bool) -> Tensor:
    optimizer = torch.optim.SGD(model.parameters(), lr=t.lr, fused=fused)
    for rows in t.indices:
        optimizer.zero_grad()
        step(t.x[rows], t.y[rows]).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class _WithLoss(nn.Module):
    """With products in bf16 if the problem's are. Autocast ends with every step: it keeps the weights that it cast."""

    def __init__(self, model: nn.Module, t: Deep):
        super().__init__()
        self.model, self.device = model, t.x.device.type
        self.bf16 = t.precision == "bf16" and t.x.dtype == torch.float32

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            output = self.model(x)
        return (output.to(y.dtype) - y).square().sum(1).mean() / 2


class _WithStep(nn.Module):
    def __init__(self, model: nn.Module, t: Deep):
        super().__init__()
        self.model, self.lr, self.device = model, t.lr, t.x.device.type
        self.bf16 = t.precision == "bf16" and t.x.dtype == torch.float32

    def forward(self, x: Tensor, y: Tensor) -> None:
        parameters: dict[str, Tensor] = dict(self.model.named_parameters())

        def loss(one: dict[str, Tensor]) -> Tensor:
            with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
                output = functional_call(self.model, one, (x,))
            return (output.to(y.dtype) - y).square().sum(1).mean() / 2

        for name, g in grad(loss)(parameters).items():
            parameters[name].sub_(g, alpha=self.lr)


def vmapped(t: Deep) -> Tensor:
    """All students at once by torch.func.vmap(grad)."""
    models = [network_of(t, k) for k in range(len(t.students))]
    parameters, buffers = stack_module_state(models)  # type: ignore[arg-type]
    base = models[0]

    def loss(one: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return (functional_call(base, (one, buffers), (x,)) - y).square().sum(1).mean() / 2

    gradient = vmap(grad(loss), in_dims=(0, None, None))
    parameters = {name: p.detach().clone() for name, p in parameters.items()}
    for rows in t.indices:
        for name, g in gradient(parameters, t.x[rows], t.y[rows]).items():
            parameters[name].sub_(g, alpha=t.lr)
    flat = torch.cat([p.flatten(1) for p in parameters.values()], 1)
    return flat if t.parameters.dim() == 2 else flat[0]


def on_threads(call: Callable[[Deep], Tensor], threads: int) -> Callable[[Deep], Tensor]:
    """The call, with so many threads inside every torch operation."""

    def limited(t: Deep) -> Tensor:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return call(t)
        finally:
            torch.set_num_threads(before)

    return limited
