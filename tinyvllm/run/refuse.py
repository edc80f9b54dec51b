"""Sampling fields that a command has no use for are refused, not ignored."""

from __future__ import annotations

from collections.abc import Sequence

from tinyvllm.config import Resolved
from tinyvllm.errors import ConfigError
from tinyvllm.request import SamplingParams


def refuse_fields(resolved: Resolved, fields: Sequence[str], reason: str) -> None:
    """Return if ``run.sampling`` leaves all these fields at their defaults.

    Raises:
        ConfigError: it does not; says which one, where it was given, and ``reason``.
    """
    sampling = resolved.config.run.sampling if resolved.config.run else {}
    for field in fields:
        if field in sampling and sampling[field] != getattr(SamplingParams(), field):
            origin = resolved.origin(("run", "sampling", field))
            raise ConfigError(f"{origin}: run.sampling.{field} cannot be used here: {reason}")
