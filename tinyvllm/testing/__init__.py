"""The conformance kit: what the project's own kernels are held to, for authors of plugins to hold theirs to.

from tinyvllm.testing import check_op

def test_my_rms_norm_is_its_definition():
    for outcome in check_op("rms_norm", device="emulator", plugins=["./my_rms_norm.py"]):
        assert outcome.is_right, outcome.failure
"""

from tinyvllm.testing.check import Outcome, check_op

__all__ = ["Outcome", "check_op"]
