"""Random streams by name, so that everything random here comes back the same from the same seed."""

import random


def stream(name: str, seed: int | str) -> random.Random:
    """A generator for one purpose: other names and other seeds give unrelated streams."""
    return random.Random(f"{name} {seed}")  # noqa: S311  (no secrets are made of it)
