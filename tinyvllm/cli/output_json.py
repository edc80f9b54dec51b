"""``--output-json FILE``: the figures of a benchmark in a file, beside the table on standard output."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyvllm.errors import ConfigError


def add_output_json_argument(parser: argparse.ArgumentParser) -> None:
    """The flag itself."""
    parser.add_argument("--output-json", type=Path, metavar="FILE", help="write the plain numbers there as well")


def check_output_json(path: Path | None) -> None:
    """Find out, before anything is measured, that the file cannot be written; do nothing without one.

    Raises:
        ConfigError: its folder is not there, or it is a folder itself.
    """
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        why = "it is a folder" if path.is_dir() else "there is no such folder"
        raise ConfigError(f"--output-json: cannot write {path}: {why}; name a file in a folder that is there")


def write_output_json(path: Path | None, results: Sequence[dict[str, Any]]) -> None:
    """Write the results, if there is a file for them.

    Raises:
        ConfigError: they cannot be written.
    """
    if path is None:
        return
    try:
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output-json: cannot write {path}: {error.strerror}") from error
