"""What a run reads, sealed: whether an input is the same as before, or the same with more lines at the end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyvllm.errors import ConfigError
from tinyvllm.run.jobs import line_of, lines_of


@dataclass(frozen=True, slots=True)
class InputSeal:
    """How long an input is, and a hash of it.

    Attributes:
        name: for messages.
        num_lines: blank ones included.
        num_bytes: in all.
        sha256: of them.
        path: None where the prompts are in the configuration.
    """

    name: str
    num_lines: int
    num_bytes: int
    sha256: str
    path: Path | None = None

    def as_json(self) -> dict[str, Any]:
        """What :meth:`continues` compares."""
        return {"num_bytes": self.num_bytes, "sha256": self.sha256}

    def continues(self, earlier: Mapping[str, Any]) -> bool:
        """Whether this input is the earlier one, or begins with it and goes on with further lines."""
        if earlier == self.as_json():
            return True
        num_bytes, sha256 = earlier.get("num_bytes"), earlier.get("sha256")
        if self.path is None or not isinstance(num_bytes, int) or num_bytes >= self.num_bytes:
            return False
        digest, last, following = hashlib.sha256(), b"", b""
        with self.path.open("rb") as file:
            left = num_bytes
            while left and (piece := file.read(min(left, 2**20))):
                digest.update(piece)
                left, last = left - len(piece), piece[-1:]
            following = file.read(1)
        return digest.hexdigest() == sha256 and b"\n" in (last, following)


def seal_file(path: Path) -> InputSeal:
    """The seal of a file.

    Raises:
        ConfigError: it cannot be read.
    """
    digest, num_bytes, num_lines, last = hashlib.sha256(), 0, 0, b"\n"
    try:
        with path.open("rb") as file:
            while piece := file.read(2**20):
                digest.update(piece)
                num_bytes, num_lines, last = num_bytes + len(piece), num_lines + piece.count(b"\n"), piece[-1:]
    except OSError as error:
        raise ConfigError(f"run.prompts_file: cannot read {path}: {error.strerror}") from error
    return InputSeal(path.name, num_lines + (last != b"\n"), num_bytes, digest.hexdigest(), path)


def seal_prompts(prompts: list[str]) -> InputSeal:
    """The seal of prompts that are in the configuration."""
    content = b"\n".join(map(line_of, prompts))
    return InputSeal("run.prompts", len(prompts), len(content), hashlib.sha256(content).hexdigest())


def numbered_lines(seal: InputSeal, prompts: list[str] | None) -> Iterator[tuple[int, bytes]]:
    """The lines of a sealed input."""
    if seal.path is None:
        return enumerate(map(line_of, prompts or []))
    return lines_of(seal.path)
