"""The report of an images run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastspec.digits_report import accuracy_table, layer_table, node_table, pictures
from fastspec.report import Block, Heading, Text, percent

if TYPE_CHECKING:
    import xarray as xr

DATA = {"digits": "scikit-learn's digits", "mnist": "MNIST", "cifar10": "CIFAR-10"}


def images_blocks(results: xr.Dataset, config: Mapping[str, Any], name: str = "") -> list[Block]:
    """The report of an images run; `name` goes before the names of its figures."""
    hidden = [int(nodes) for nodes in results.teacher_nodes.values]
    widths, whole = "-".join(map(str, hidden)), "-".join(map(str, config["hidden"]))
    accuracy, before = float(results.teacher_accuracy_held_out), float(results.whole_teacher_accuracy_held_out)
    kind = "channels" if config["network"] == "convolutional" else "nodes"
    pruned = (
        f" Of its {whole} hidden {kind} those of lowest mean fan-out were then pruned, which left {widths}: "
        f"{percent(accuracy)} right."
        if config["prune"]
        else ""
    )
    return [
        Heading(f"Students of a {'pruned ' * bool(pruned)}{config['network']} teacher of {DATA[config['data']]}"),
        Text(
            f"The teacher ({whole} hidden {kind}) learned {int(results.train_images):,} images from their labels: "
            f"{percent(before)} right on {int(results.held_out_images):,} held-out ones.{pruned} The students saw no "
            f"label: they learned its logits, for {config['student_steps']:,} steps of {config['batch_size']} images "
            f"with Gaussian noise of standard deviation {config['student_noise']:g}. Everything here is measured on "
            "held-out images without noise; the activations of a channel at all positions are samples of one node."
        ),
        accuracy_table(results, accuracy),
        layer_table(results, hidden),
        *pictures(results, name),
        *(node_table(results, *layer) for layer in enumerate(hidden, start=1)),
    ]
