"""From preprocessed CUDA C++ to C++17: the three things that macros cannot do.

A ``__shared__`` declaration becomes a reference to memory of the running block, a ``return;`` leaves a mark that tells
a thread that gives up early from one that has passed by a barrier, and each kernel gets a description that Python
reads. Everything stays on its line, so that compiler messages and reports point into the ``.cu`` file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tinyvllm.errors import KernelError

_SHARED = re.compile(
    r"(?P<extern>extern\s+)?(?:static\s+)?(?P<align1>alignas\s*\([^;()]*\)\s*)?\b__shared__\s+(?P<declaration>[^;]*);"
)
_ALIGNAS = re.compile(r"alignas\s*\((?P<bytes>[^()]*(?:\([^()]*\)[^()]*)*)\)\s*")
_DECLARATION = re.compile(r"(?P<type>.*[\s>*&])(?P<name>[A-Za-z_]\w*)\s*(?P<dims>(?:\[[^\[\]]*\]\s*)*)", re.DOTALL)
_BOUNDS = r"(?:__launch_bounds__\s*\((?P<{name}>[^()]*(?:\([^()]*\)[^()]*)*)\)\s*)?"
_KERNEL = re.compile(
    r"__global__\s+" + _BOUNDS.format(name="before") + r"void\s+" + _BOUNDS.format(name="after")
    + r"(?P<name>[A-Za-z_]\w*)\s*\("
)  # fmt: skip
_LINE_MARKER = re.compile(r'^# (?P<line>\d+) "(?P<file>[^"]*)"', re.MULTILINE)
_RETURN = re.compile(r"""(?P<literal>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])')|\breturn\s*;""")
_SCOPE = re.compile(r'(?P<outer>\bnamespace\b[^{;()]*\{|\bextern\s+"C"\s*\{)|(?P<open>\{)|(?P<close>\})')


@dataclass(frozen=True, slots=True)
class Rewritten:
    """C++ text for the compiler, and the kernels that it defines."""

    text: str
    kernels: tuple[str, ...]


def rewrite(text: str) -> Rewritten:
    """The preprocessed ``text`` as plain C++.

    Raises:
        KernelError: a ``__shared__`` declaration, or a kernel, of a form that is not supported; with file and line.
    """
    kernels = [(found["name"], found["before"] or found["after"]) for found in _KERNEL.finditer(text)]
    body = _SHARED.sub(lambda found: _shared_variable(text, found), text)
    if "__shared__" in body:
        raise KernelError(f"{_where(text, text.index('__shared__'))}: this use of __shared__ is not understood")
    body = re.sub(r"__launch_bounds__\s*\([^()]*(?:\([^()]*\)[^()]*)*\)", "", body)
    body = re.sub(r"\b__global__\b", "", body)
    body = _RETURN.sub(_leaving, body)
    description = "\n".join(_describe(name, bounds) for name, bounds in kernels)
    return Rewritten(f"{body}\n{description}\n", tuple(name for name, _ in kernels))


def _leaving(found: re.Match[str]) -> str:
    return found["literal"] or "return ::tinyvllm::emulator::leave();" + "\n" * found[0].count("\n")


def _shared_variable(text: str, found: re.Match[str]) -> str:
    where = _where(text, found.start())
    declaration = found["declaration"]
    align = _ALIGNAS.search((found["align1"] or "") + declaration)
    parts = _DECLARATION.fullmatch(_ALIGNAS.sub("", declaration).strip())
    if parts is None or "," in re.sub(r"<[^<>]*>", "", parts["type"]) or "=" in declaration:
        raise KernelError(f"{where}: write one __shared__ variable per declaration, got '{declaration.strip()}'")
    if _is_file_scope(text[: found.start()]):
        raise KernelError(f"{where}: declare the __shared__ variable '{parts['name']}' inside the kernel that uses it")
    kind, name, dims = parts["type"].strip(), parts["name"], parts["dims"].strip()
    if found["extern"]:
        replacement = f"{kind}* const {name} = static_cast<{kind}*>(::tinyvllm::emulator::dynamic_shared());"
    else:
        alignment = f"({align['bytes']})" if align else f"alignof({kind})"
        replacement = (
            f"static const char {name}_key = 0; auto& {name} = "
            f"::tinyvllm::emulator::shared_variable<{kind}{dims}, {alignment}>({name}_key);"
        )
    missing_lines = found[0].count("\n") - replacement.count("\n")
    return replacement + "\n" * missing_lines


def _describe(name: str, bounds: str | None) -> str:
    max_threads = _first_argument(bounds) if bounds else "1024"
    signature = f"decltype(::tinyvllm::emulator::signature_of(&{name}))"
    return (
        f"static void tinyvllm_call_{name}(void** arguments) {{ ::tinyvllm::emulator::call(&{name}, arguments); }}\n"
        f'extern "C" {{ extern const ::tinyvllm::emulator::KernelInfo tinyvllm_kernel_{name}; '
        f"const ::tinyvllm::emulator::KernelInfo tinyvllm_kernel_{name} = {{&tinyvllm_call_{name}, "
        f"{signature}::parameters, {signature}::num_parameters, ({max_threads})}}; }}"
    )


def _first_argument(arguments: str) -> str:
    depth = 0
    for i, character in enumerate(arguments):
        depth += (character in "(<") - (character in ")>")
        if character == "," and depth == 0:
            return arguments[:i]
    return arguments


def _is_file_scope(before: str) -> bool:
    """True if the text ends outside all braces but those of namespaces and linkage blocks."""
    scopes: list[bool] = []
    for found in _SCOPE.finditer(before):
        if found["close"]:
            scopes = scopes[:-1]
        else:
            scopes.append(found["outer"] is not None)
    return all(scopes)


def _where(text: str, position: int) -> str:
    """``file:line`` of a position in preprocessed text, by the nearest line marker above it."""
    file, line, end = "source", 1, 0
    for marker in _LINE_MARKER.finditer(text, 0, position):
        file, line, end = marker["file"], int(marker["line"]), marker.end()
    newlines = text.count("\n", end, position)
    return f"{file}:{line + newlines - (1 if end else 0)}"
