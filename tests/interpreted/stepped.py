"""Options and results of mlp_sgd_step in its tests."""

from __future__ import annotations

import math

import torch

from fastspec.ops.mlp_sgd_step import Stepped

RULE = {"first_step": 0, "momentum": 0.0, "weight_decay": 0.0, "negative_slope": 0.0, "loss_limit": math.inf}
EVERYTHING = {"momentum": 0.9, "weight_decay": 0.03, "negative_slope": 0.1, "normalize": True, "gradient_norms": True}


def assert_close(got, want, bound=1e-11):
    for name, a, w in zip(Stepped._fields, got, want, strict=True):
        assert a.dtype == w.dtype and a.shape == w.shape, name
        torch.testing.assert_close(a, w, rtol=bound, atol=bound, equal_nan=True)


def same(one, two):
    return all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(one, two, strict=True))
