"""The papers' experiments, one dataclass each, and the command line."""
