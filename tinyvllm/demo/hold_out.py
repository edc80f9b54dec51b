"""Decides which items are kept away from training.

By a hash of the item, because a linear rule (every tenth pair, say) hides whole digit pairs from training and
then measures extrapolation instead of what was learnt.
"""

import hashlib

HELD_OUT_FRACTION = 0.1
"""The share of all items that training never sees."""


def is_held_out(item: str) -> bool:
    """True for about one item in ten: those that only ``verify`` may use. Depends on the text of ``item`` alone."""
    digest = hashlib.sha256(f"tinyvllm demo: {item}".encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_FRACTION * 2**32
