"""The coordinate check: how large activations are, at initialisation and while the first steps are made."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, relu


def coordinates(weights: Sequence[Tensor], top: Tensor, x: Tensor, target: Tensor, *, steps: int, lr: float) -> Tensor:
    """Root mean square over samples and nodes of each layer's activations, before every step and after the last.

    weights, top, x, target: as in `fastspec.norms.ratios.ratios`. Full-batch gradient descent on the cross-entropy, all
    layers at one learning rate. Where it does not depend on the width, one learning rate suits all widths.
    Returns float64 [P, L + 1, steps + 1]; the last layer is the logits.
    """
    layers = [weight.detach().clone() for weight in (*weights, top)]
    found = []
    for step in range(steps + 1):
        for weight in layers:
            weight.requires_grad_(step < steps)
        h, sizes = x, []
        for weight in layers[:-1]:
            h = relu(h @ weight.mT)
            sizes.append(_size(h))
        logits = h @ layers[-1].mT
        found.append(torch.stack([*sizes, _size(logits)], dim=-1))  # [P, L + 1]
        if step < steps:
            loss = -(target * log_softmax(logits, -1)).sum() / len(x)  # summed over the networks, which share nothing
            gradients = torch.autograd.grad(loss, layers)
            layers = [(w.detach() - lr * g) for w, g in zip(layers, gradients, strict=True)]
    return torch.stack(found, dim=-1)


def _size(h: Tensor) -> Tensor:
    return h.detach().double().square().mean((-2, -1)).sqrt()
