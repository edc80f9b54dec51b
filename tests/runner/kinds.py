"""One row of every kind of sampling."""

from __future__ import annotations

from tinyvllm.batch import SamplingRows
from tinyvllm.start.warm_up import COMMON, EVERYTHING

RULES = SamplingRows.of(1, temperature=1, has_rules=True)
LISTED = SamplingRows.of(1, temperature=1, num_logprobs=2)
ALL_KINDS = (*COMMON, RULES, LISTED, EVERYTHING)
