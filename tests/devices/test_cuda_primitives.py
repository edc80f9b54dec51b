"""The emulator's tests of the prelude's primitives, on the card: what they say of the emulator is true of a GPU."""

from tests.emulator.test_primitives import (
    module,
    test_atomics_and_votes,
    test_every_bf16_and_f16_converts_exactly_and_back,
    test_ldmatrix_and_mma_as_the_instruction_set_defines_them,
    test_rounding_is_to_nearest_even,
    test_warp_functions,
)

__all__ = [
    "module",
    "test_atomics_and_votes",
    "test_every_bf16_and_f16_converts_exactly_and_back",
    "test_ldmatrix_and_mma_as_the_instruction_set_defines_them",
    "test_rounding_is_to_nearest_even",
    "test_warp_functions",
]
