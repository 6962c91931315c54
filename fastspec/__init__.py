"""fastspec: which student node has become which teacher node, when, and why."""
