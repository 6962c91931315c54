"""The two ways to make steps: plain networks and populations of them by the op, any module by autograd."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from fastspec.networks import MLP
from fastspec.ops.checks import refuse
from fastspec.ops.mlp_sgd_step import layers_of, mlp_sgd_step
from fastspec.relu_network import ReluNetwork
from fastspec.training.lessons import Batches

MakeOptimizer: TypeAlias = Callable[..., Optimizer]


class Rule(NamedTuple):
    """What a step is: the options that both ways share, and the precision of the op's products."""

    momentum: float
    weight_decay: float
    normalize: bool
    loss_limit: float
    precision: str | None


class Updates(ABC):
    """Students under training."""

    diverged_step: Tensor  # [] or [P] int64, -1 for none, on the CPU

    @abstractmethod
    def advance(self, batches: Batches, rates: Tensor, first_step: int) -> Tensor:
        """One step for each batch, at rates [steps] float64; the batch losses [*P, steps] float64, NaN for no step."""

    @abstractmethod
    def put_back(self) -> None:
        """Let the networks have the weights that they have reached."""

    @abstractmethod
    def state(self) -> tuple[dict[str, Tensor], str]:
        """Everything that training goes on from: tensors, and what else there is as JSON."""

    @abstractmethod
    def load(self, tensors: Mapping[str, Tensor], rest: str) -> None:
        """Go on from what `state` gave."""


def is_plain(network: nn.Module) -> bool:
    """Whether the op can train a network: an MLP without batch norm, all of whose weights learn."""
    return (
        type(network) is MLP
        and network.batch_norm is None
        and network.layers[0].weight.dtype in (torch.float32, torch.float64)
        and all(p.requires_grad for p in network.parameters())
        and not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in network.modules())
    )


class ByOp(Updates):
    """Plain networks, of one shape if there are several; a list of one is one network without a population axis."""

    def __init__(self, networks: Sequence[MLP], rule: Rule, *, population: bool):
        self.networks, self.rule = networks, rule
        flat = [torch.cat([p.detach().flatten() for p in network.parameters()]) for network in networks]
        self.parameters = torch.stack(flat) if population else flat[0]
        self.buffers = torch.zeros_like(self.parameters) if rule.momentum else None
        self.diverged_step = torch.full(self.parameters.shape[:-1], -1)
        self.widths, self.bias = networks[0].widths, [layer.bias is not None for layer in networks[0].layers]

    def advance(self, batches: Batches, rates: Tensor, first_step: int) -> Tensor:
        out = mlp_sgd_step(
            batches.x,
            batches.y,
            self.parameters,
            self.widths,
            indices=batches.indices,
            lr=rates.to(batches.x.device),
            bias=self.bias,
            buffers=self.buffers,
            diverged_step=self.diverged_step.to(batches.x.device),
            first_step=first_step,
            momentum=self.rule.momentum,
            weight_decay=self.rule.weight_decay,
            negative_slope=self.networks[0].negative_slope,
            loss_limit=self.rule.loss_limit,
            normalize=self.rule.normalize,
            precision=self.rule.precision,
            check=False,
        )
        self.parameters, self.buffers, self.diverged_step = out.parameters, out.buffers, out.diverged_step.cpu()
        return out.loss.cpu()

    @torch.no_grad()
    def put_back(self) -> None:
        rows = self.parameters if self.parameters.dim() == 2 else self.parameters[None]
        for network, row in zip(self.networks, rows, strict=True):
            for layer, (weight, bias) in zip(network.layers, layers_of(row, self.widths, self.bias), strict=True):
                layer.weight.copy_(weight)
                if bias is not None and layer.bias is not None:
                    layer.bias.copy_(bias)

    def state(self) -> tuple[dict[str, Tensor], str]:
        tensors = {"parameters": self.parameters, "diverged_step": self.diverged_step}
        return tensors if self.buffers is None else {**tensors, "buffers": self.buffers}, ""

    def load(self, tensors: Mapping[str, Tensor], rest: str) -> None:
        self.parameters = tensors["parameters"].to(self.parameters)
        self.diverged_step = tensors["diverged_step"]
        self.buffers = tensors["buffers"].to(self.parameters) if self.buffers is not None else None


class ByAutograd(Updates):
    """Any module, with any optimizer; over the processes of a group, each of which takes its share of every batch."""

    def __init__(
        self,
        network: nn.Module,
        rule: Rule,
        *,
        optimizer: MakeOptimizer | None,
        lr: float,
        group: dist.ProcessGroup | None,
    ):
        self.network, self.rule, self.group = network, rule, group
        self.learning = [p for p in network.parameters() if p.requires_grad]
        if not self.learning:
            refuse("student", "a network without parameters that learn", "one whose parameters require gradients")
        if optimizer is None:
            self.optimizer: Optimizer = torch.optim.SGD(
                self.learning, lr=lr, momentum=rule.momentum, weight_decay=rule.weight_decay
            )
        else:
            self.optimizer = optimizer(self.learning, lr=lr)
        self.factors = [group["lr"] / lr if lr else 0.0 for group in self.optimizer.param_groups]
        self.diverged_step = torch.tensor(-1)
        if group is not None:
            for tensor in network.state_dict().values():
                dist.broadcast(tensor, dist.get_global_rank(group, 0), group=group)

    def advance(self, batches: Batches, rates: Tensor, first_step: int) -> Tensor:
        losses = torch.full((len(batches.indices),), torch.nan, dtype=torch.float64)
        self.network.train()
        for t, (rows, rate) in enumerate(zip(batches.indices, rates.tolist(), strict=True)):
            self.optimizer.zero_grad()
            losses[t] = self._backward(batches, rows)
            if not losses[t] <= min(self.rule.loss_limit, torch.finfo(torch.float64).max):
                self.diverged_step = torch.tensor(first_step + t)
                break
            for group, factor in zip(self.optimizer.param_groups, self.factors, strict=True):
                group["lr"] = factor * rate
            self.optimizer.step()
            if self.rule.normalize:
                normalize_(self.network)
        return losses

    def _backward(self, batches: Batches, rows: Tensor) -> float:
        """Gradients of the mean loss over the batch, of which a process computes its share; the loss."""
        size = len(rows)
        if self.group is not None:
            rows = rows[dist.get_rank(self.group) :: dist.get_world_size(self.group)]
        output = self.network(batches.x[rows])
        loss = summed_loss(output, batches.y[rows]) / size
        loss.backward()
        if self.group is None:
            return float(loss.detach())
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.learning]
        flat = torch.cat([g.flatten() for g in gradients] + [loss.detach().view(1).to(gradients[0])])
        dist.all_reduce(flat, group=self.group)
        for p, part in zip(self.learning, flat[:-1].split([p.numel() for p in self.learning]), strict=True):
            p.grad = part.view_as(p).clone()
        return float(flat[-1])

    def put_back(self) -> None:
        """Processes differ in the statistics of their batches alone; all take those of the first."""
        if self.group is not None:
            for tensor in self.network.buffers():
                dist.broadcast(tensor, dist.get_global_rank(self.group, 0), group=self.group)

    def state(self) -> tuple[dict[str, Tensor], str]:
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors["diverged_step"] = self.diverged_step
        saved = self.optimizer.state_dict()
        rest: dict[str, Any] = {"groups": saved["param_groups"], "numbers": {}}
        for index, entries in saved["state"].items():
            for name, value in entries.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{name}"] = value
                else:
                    rest["numbers"][f"{index}.{name}"] = value
        return tensors, json.dumps(rest)

    def load(self, tensors: Mapping[str, Tensor], rest: str) -> None:
        known = json.loads(rest)
        head = "network."
        self.network.load_state_dict({k.removeprefix(head): v for k, v in tensors.items() if k.startswith(head)})
        state: dict[int, dict[str, Any]] = {}
        found = {k.removeprefix("optimizer."): v for k, v in tensors.items() if k.startswith("optimizer.")}
        for key, value in (*found.items(), *known["numbers"].items()):
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": known["groups"]})
        self.diverged_step = tensors["diverged_step"]


def summed_loss(output: Tensor, answer: Tensor) -> Tensor:
    """The loss of outputs [B, C] summed over the samples: 1/2 ||.||^2, or cross-entropy with labels."""
    if answer.dtype == torch.int64:
        return F.cross_entropy(output, answer, reduction="sum")
    return (output - answer).square().sum() / 2


@torch.no_grad()
def normalize_(network: nn.Module) -> None:
    """Divide the weights of every node by their norm, but for those of the last layer; a node of norm 0 stays."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    layers = (
        network.layers if isinstance(network, ReluNetwork) else [m for m in network.modules() if isinstance(m, kinds)]
    )
    for layer in layers[:-1]:
        weight = layer.weight
        norm = weight.flatten(1).norm(dim=1).view(-1, *[1] * (weight.dim() - 1))
        weight.div_(norm.masked_fill(norm == 0, 1))
