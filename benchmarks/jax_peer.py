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


@cache
def missing(device: str = "cpu") -> str | None:
    """Why JAX cannot run here on a device, "cpu" or "cuda"; None where it can."""
    if not importlib.util.find_spec("jax"):
        return "JAX is not installed"
    try:
        if device != "cpu":
            _start(torch.get_num_threads(), device)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return None


def version() -> str | None:
    """The version of JAX, None without it."""
    return None if missing() else _start(torch.get_num_threads(), "cpu").__version__


@cache
def _start(threads: int, device: str) -> Any:
    """JAX with float64, true float32 products and so many threads; the first call in a process decides."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs the memory of a GPU too
    import jax

    jax.config.update("jax_platforms", device)
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_default_matmul_precision", "highest")
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
def _trainer(device: str) -> Callable[..., Any]:
    jax = _start(torch.get_num_threads(), device)
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
    on_gpu = t.x.is_cuda
    train = _trainer(t.x.device.type)
    jax = _start(torch.get_num_threads(), t.x.device.type)
    tensors = (*t.weights, t.x, t.y, t.indices.transpose(0, 1).contiguous())  # batches [steps, P, B]
    if on_gpu:
        torch.cuda.synchronize()
    *weights, x, y, batches = (jax.numpy.from_dlpack(v) if on_gpu else v.numpy() for v in tensors)
    found = jax.block_until_ready(train(weights, x, y, batches))
    return Weights(*(torch.from_dlpack(w) if on_gpu else torch.from_numpy(np.array(w)) for w in found))
