"""Reads what the sanitizers write: one finding per report, at the line of the ``.cu`` file."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tinyvllm.devices.compile_cache import INCLUDE_DIR

_RUNTIME_ERROR = re.compile(r"^(?P<place>\S+?:\d+):\d+: runtime error: (?P<message>.*)$", re.MULTILINE)
_REPORT = re.compile(
    r"^(?:=+\n)?(?:==\d+==\s*ERROR|WARNING): (?P<tool>AddressSanitizer|ThreadSanitizer): (?P<message>[^\n]*)\n"
    r"(?P<body>.*?)(?=^SUMMARY:)",
    re.MULTILINE | re.DOTALL,
)
_ACCESS = re.compile(
    r"^\s*(?P<what>(?:Previous |\[failed to restore the stack\])?(?:atomic )?(?:read|write|READ|WRITE)[^\n]*)\n"
    r"(?P<frames>(?:\s+#\d+[^\n]*\n)+)",
    re.MULTILINE | re.IGNORECASE,
)
_FRAME_PLACE = re.compile(r"\s(/[^\s:]+:\d+)")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check found; ``place`` is ``file:line`` or empty where unknown."""

    kind: str
    place: str
    message: str

    def __str__(self) -> str:
        """``place: kind: message``."""
        return f"{self.place}: {self.kind}: {self.message}" if self.place else f"{self.kind}: {self.message}"


def read_reports(log: str) -> tuple[Finding, ...]:
    """The findings in the error stream of a sanitized process, each place and kind once."""
    findings: dict[tuple[str, str, str], Finding] = {}
    for found in _RUNTIME_ERROR.finditer(log):
        place = _own_place(log[found.start() : found.end() + 2000].split("\n\n")[0]) or found["place"]
        _add(findings, Finding("undefined behaviour", place, found["message"]))
    for found in _REPORT.finditer(log):
        accesses = [
            (_own_place(access["frames"]), _short(access["what"])) for access in _ACCESS.finditer(found["body"])
        ]
        places = [place for place, _ in accesses if place]
        details = ", ".join(f"{what} at {place or 'an unknown place'}" for place, what in accesses)
        kind = "race" if found["tool"] == "ThreadSanitizer" else found["message"].split()[0]
        _add(findings, Finding(kind, places[0] if places else "", details or found["message"]))
    return tuple(findings.values())


def _add(findings: dict[tuple[str, str, str], Finding], finding: Finding) -> None:
    findings.setdefault((finding.kind, finding.place, finding.message), finding)


def _own_place(frames: str) -> str:
    """The innermost frame that is in neither the prelude nor the runtime."""
    places = _FRAME_PLACE.findall(frames)
    own = [place for place in places if not place.startswith(str(INCLUDE_DIR)) and ".cu" in place.rpartition("/")[2]]
    return own[0] if own else ""


def _short(access: str) -> str:
    """``Write of size 4`` of ``Write of size 4 at 0x7b... by thread T3:``."""
    return access.split(" at 0x")[0].strip().lower()
