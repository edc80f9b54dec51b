"""The emulator's tests of Hopper's copy engine and products, on the card."""

from tests.emulator.test_hopper import (
    needs_hopper,
    test_a_box_lies_swizzled_and_is_zero_beyond_the_matrix,
    test_a_product_of_a_warpgroup,
)

__all__ = [
    "needs_hopper",
    "test_a_box_lies_swizzled_and_is_zero_beyond_the_matrix",
    "test_a_product_of_a_warpgroup",
]
