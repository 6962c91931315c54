"""What the page says, with the numbers of the runs."""

from __future__ import annotations

from typing import Any

import xarray as xr

from studies.ablation.claims import final

QUESTION = """Students with four hidden layers learn teachers with hidden layers {hidden} from {inputs} Gaussian \
inputs. What decides how many of the teacher's nodes they find: their width, batch norm, the teacher, or how they are \
trained? The layer score is the mean over the teacher nodes of a hidden layer of the largest correlation with a \
student node, on held-out inputs. Where one number stands for a student it is the mean over the four hidden layers; a \
layer without any correlation, of a student that diverged or has no node left that varies, counts as 0. Every seed has \
a teacher, a student and samples of its own, the same for all settings, so that settings are compared seed by seed."""
CLAIMED = """From the README of the code of Luck Matters (Tian, Jiang, Gong, Morcos, arXiv 1905.13405; \
github.com/facebookresearch/luckmatters, folder luckmatter). Its teachers are what is called separated here: their \
biases are drawn and not tuned. *found* is where all seeds agree, *the contrary* where none does."""
ANSWER = """{settings} settings, {seeds} seeds. The base (5×, batches of 64, a learning rate of 0.1, a tuned teacher) \
ends at {base:.3f}. What changes it most is how far students come in the {epochs} epochs: {big:.3f} with batches of \
256 and {slow:.3f} at a rate of 0.02, but {small:.3f} with batches of 16 and {fast:.3f} at 0.3. Width matters as much: \
students of the teacher's own width end at {x1:.3f}, twice as wide ones at {x2:.3f}, ten times as wide ones at \
{x10:.3f}. Fewer outputs are worse ({c30:.3f} with 30, {c10:.3f} with 10), and so are inputs of smaller standard \
deviation ({std3:.3f} with 3, {std1:.3f} with 1) and teachers that are not tuned ({separated:.3f}). On a teacher \
with uniform weights ({random:.3f}) and on batch norm (before the ReLU {before:.3f}, after it {after:.3f}) the seeds \
do not agree. The lowest layer is hardly touched by anything: in all settings but 1× it ends at {lowest:.4f} or \
more."""
PACE = """All students see the same samples, so that the learning rate over the batch size says how far they come. As \
this quotient grows the score of every width grows, whichever of the two is changed, until it is too large (batches \
of 16 at a rate of 0.3), where the narrowest students fall furthest. At its best, batches of 16 at 0.1, students of \
1×, 2×, 5× and 10× end at {x1:.3f}, {x2:.3f}, {x5:.3f} and {x10:.3f}: with time enough twice the teacher's nodes do, \
and nothing tried here makes up for having only as many nodes as the teacher."""
NORM = """At the base's learning rate of 0.1, batch norm before the ReLU ends at {before1:.3f}, after it at \
{after1:.3f}, none at {none1:.3f} ({seeds} seeds). At 0.3 students without are ahead. What batch norm changes is which \
rates can be used: at 1 students without it lose their nodes, and those with it learn as well as at 0.3."""
INPUTS = """That inputs need a standard deviation of 10, so that they reach all corners, is above all a matter of \
pace. The outputs of a teacher that is not tuned shrink with its inputs, and gradients with the square of them: \
inputs of 1 make learning a hundred times slower. With a learning rate a hundred times as large, 10, students of such \
teachers end at {fast:.3f}, where those with inputs of 10 and a rate of 0.1 end at {large:.3f} and those with inputs \
of 1 and that rate at {small:.3f}. A tuned teacher has outputs of variance 1 whatever its inputs; then inputs of 1 \
slow learning down a little, and a rate of 0.3 makes up for it. High learning rates are unstable earlier for teachers \
that are not tuned, at 0.3 with inputs of 10; why is not tested."""
NOT_TESTED = """Other numbers of layers and inputs, other hidden widths, momentum and schedules of the learning rate, \
weights normalised after every step, leaky ReLU, batch norm together with other than the base's width and batch size, \
and trained teachers. Where learning is not over, differences are those after {epochs} epochs."""


def answer(results: xr.Dataset) -> str:
    """The answer, from the runs that change one thing at a time."""
    settings: dict[str, dict[str, Any]] = {
        "big": {"batch_size": 256}, "small": {"batch_size": 16}, "slow": {"lr": 0.02}, "fast": {"lr": 0.3},
        "x1": {"multi": 1}, "x2": {"multi": 2}, "x10": {"multi": 10}, "c30": {"outputs": 30}, "c10": {"outputs": 10},
        "std3": {"data_std": 3.0}, "std1": {"data_std": 1.0}, "separated": {"teacher": "separated"},
        "random": {"teacher": "random"}, "before": {"batch_norm": "before"}, "after": {"batch_norm": "after"},
        "base": {},
    }  # fmt: skip
    numbers = {name: float(final(results, **values).mean()) for name, values in settings.items()}
    lowest = float(results.layer_score.isel(epoch=-1).sel(layer=1).where(results.multi > 1).min())
    epochs = int(results.epoch[-1])
    return ANSWER.format(settings=len(results.cell), seeds=len(results.seed), epochs=epochs, lowest=lowest, **numbers)


def pace(results: xr.Dataset) -> str:
    """About width, batch size and learning rate, from the runs with all combinations of them."""
    found = {f"x{m}": float(final(results, multi=m, batch_size=16, lr=0.1).mean()) for m in (1, 2, 5, 10)}
    return PACE.format(**found)


def norm(single: xr.Dataset, results: xr.Dataset) -> str:
    """About batch norm: at the base's learning rate, and at larger ones."""
    found = {f"{n}1": float(final(single, batch_norm=n).mean()) for n in ("none", "before", "after")}
    return NORM.format(seeds=len(single.seed), **found)


def inputs(results: xr.Dataset, rates: xr.Dataset) -> str:
    """About the standard deviation of the inputs, from two kinds of teachers and from larger rates for the untuned."""
    untuned = {"teacher": "separated", "lr": 0.1}
    found = {"large": final(results, **untuned, data_std=10.0), "small": final(results, **untuned, data_std=1.0)}
    found["fast"] = final(rates, lr=10.0)
    return INPUTS.format(**{name: float(scores.mean()) for name, scores in found.items()})
