"""Training of whole populations of students."""

from fastspec.training.two_layer import History, train_two_layer

__all__ = ["History", "train_two_layer"]
