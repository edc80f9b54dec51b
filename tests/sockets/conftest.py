"""A model to serve with a plugin."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.tiny import write_checkpoint


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of two layers."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "llama")
