"""Training: deep networks one at a time or side by side, and whole populations of two-layer students."""

from fastspec.training.deep import TrainingHistory, train
from fastspec.training.two_layer import History, train_two_layer

__all__ = ["History", "TrainingHistory", "train", "train_two_layer"]
