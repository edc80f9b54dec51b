"""One row of every kind of sampling."""

from __future__ import annotations

from tinyvllm.start.warm_up import COMMON, EVERYTHING, row

RULES = row(temperature=1, has_rules=True)
LISTED = row(temperature=1, num_logprobs=2)
ALL_KINDS = (*COMMON, RULES, LISTED, EVERYTHING)
