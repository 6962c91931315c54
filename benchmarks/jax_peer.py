"""The training of `training_peers.py` in JAX, where it is installed: `jit(scan(vmap(grad)))`."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from benchmarks.training import LR, Training, Weights


def missing() -> str | None:
    """Why JAX cannot run here; None where it can."""
    return None if importlib.util.find_spec("jax") else "JAX is not installed"


def version() -> str | None:
    """The version of JAX, None without it."""
    return None if missing() else _start(torch.get_num_threads()).__version__


@cache
def _start(threads: int) -> Any:
    """JAX with float64 and so many threads. It reads the number once, so the first call in a process decides."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    before = os.environ.get("NPROC")
    os.environ["NPROC"] = str(threads)
    try:
        jax.devices()
    finally:
        os.environ.pop("NPROC")
        if before is not None:
            os.environ["NPROC"] = before
    return jax


@cache
def _trainer() -> Callable[..., Any]:
    jax = _start(torch.get_num_threads())
    jnp = jax.numpy

    def loss(weights: Any, x: Any, y: Any) -> Any:
        w1, b1, w2, b2 = weights
        return 0.5 * jnp.square(jax.nn.relu(x @ w1.T + b1) @ w2 + b2 - y).sum(1).mean()

    gradient = jax.vmap(jax.grad(loss))

    @jax.jit
    def train(weights: Any, x: Any, y: Any, batches: Any) -> Any:
        def step(weights: Any, rows: Any) -> tuple[Any, None]:
            steps = gradient(weights, x[rows], y[rows])
            return jax.tree.map(lambda w, g: w - LR * g, weights, steps), None

        return jax.lax.scan(step, weights, batches)[0]

    return train


def trained(t: Training) -> Weights:
    """The weights after the last step."""
    weights = [w.numpy() for w in t.weights]
    batches = t.indices.transpose(0, 1).numpy()  # [steps, P, B]
    found = _trainer()(weights, t.x.numpy(), t.y.numpy(), batches)
    return Weights(*(torch.from_numpy(np.array(w)) for w in found))
