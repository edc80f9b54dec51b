"""The C++ compiler: the runtime library once, and one shared library per kernel source, all cached on disk."""

from __future__ import annotations

import functools
import hashlib
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tinyvllm.devices.compile_cache import INCLUDE_DIR, cached, key_of, read_sources
from tinyvllm.devices.emulator.rewrite import rewrite
from tinyvllm.errors import DeviceError, KernelError

_RUNTIME_DIR = Path(__file__).resolve().parent / "cpp"
# Version 4 of the line tables: some tools take the wrong file from those of version 5 when a source is preprocessed.
_COMMON_FLAGS = ("-std=c++17", "-fPIC", "-g1", "-gdwarf-4", "-pthread", "-DTINYVLLM_EMULATOR")
# Kernels reinterpret memory freely and CUDA has no errno; contraction to fused multiply-add is the CUDA default too.
# A tail call into the runtime would hide the line that made it. Warnings that CUDA's compiler does not give are off:
# threadIdx.x is compared with an int in every kernel, and uint64_t is another type there, which printf would see.
_KERNEL_FLAGS = (
    "-O2", "-fno-strict-aliasing", "-fno-math-errno", "-fno-trapping-math", "-fno-exceptions", "-fno-rtti",
    "-fno-semantic-interposition", "-fno-optimize-sibling-calls", "-Wall", "-Wno-unknown-pragmas", "-Wno-unused",
    "-Wno-sign-compare", "-Wno-format",
)  # fmt: skip


class Sanitizer(Enum):
    """What a build looks for besides wrong results; the value names it on the command line."""

    NONE = "none"
    BOUNDS = "bounds"
    """Address and undefined-behaviour sanitizers: overruns, misaligned loads."""
    RACE = "race"
    """ThreadSanitizer: accesses that no barrier orders."""


_SANITIZER_FLAGS = {
    Sanitizer.NONE: ("-march=native",),
    Sanitizer.BOUNDS: ("-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-DTINYVLLM_BOUNDS"),
    Sanitizer.RACE: ("-fsanitize=thread", "-fno-omit-frame-pointer", "-DTINYVLLM_RACE"),
}


@dataclass(frozen=True, slots=True)
class Compiler:
    """A C++ compiler: how it is called, and what distinguishes its output from another's."""

    command: str
    identity: str

    def run(self, arguments: list[str], what: str) -> str:
        """The compiler's output.

        Raises:
            KernelError: it refused; with the first of its messages.
        """
        done = subprocess.run(  # noqa: S603  # the compiler, on our own sources and the user's kernels
            [self.command, *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            messages = "\n".join(done.stderr.splitlines()[:30])
            raise KernelError(f"{what}: {self.command} does not compile it:\n{messages}")
        return done.stdout


@functools.cache
def find_compiler(command: str | None = None) -> Compiler:
    """The C++ compiler: ``command``, or the first of g++, c++ and clang++ that is installed.

    Raises:
        DeviceError: there is none.
    """
    for candidate in (command,) if command else ("g++", "c++", "clang++"):
        path = shutil.which(candidate)
        if path is not None:
            version = subprocess.run(  # noqa: S603  # the compiler
                [path, "--version"], capture_output=True, text=True, check=True
            ).stdout
            return Compiler(path, f"{path} {version.splitlines()[0]} {_processor()}")
    wanted = command or "g++, c++ or clang++"
    raise DeviceError(f"device emulator needs a C++17 compiler, {wanted} is not installed; apt-get install g++")


def _processor() -> str:
    """What ``-march=native`` depends on, so that a cache on a shared disk is not read by another kind of processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(flags.encode()).hexdigest()[:16]


def build_runtime(compiler: Compiler, cache_dir: Path, sanitizer: Sanitizer, extra: tuple[str, ...] = ()) -> Path:
    """The shared library with fibres, collectives and launches."""
    units = sorted(_RUNTIME_DIR.glob("*.cpp"))
    sources = {path: data for unit in units for path, data in read_sources(unit, [INCLUDE_DIR]).items()}
    # The runtime is never instrumented itself: it is what makes two lanes two threads. Its undefined symbols are in
    # the sanitizer's library, which the check process has loaded first.
    flags = [flag for flag in _SANITIZER_FLAGS[sanitizer] if not flag.startswith("-fsanitize")]
    flags = [*_COMMON_FLAGS, "-O2", *flags, *extra]
    key = key_of(compiler.identity, " ".join(flags), *(sources[path] for path in sorted(sources)))

    def build(target: Path) -> None:
        files = [str(unit) for unit in units]
        compiler.run([*flags, "-shared", f"-I{INCLUDE_DIR}", *files, "-o", str(target)], "the emulator's runtime")

    return cached(cache_dir / "emulator" / f"runtime-{key[:32]}.so", build)


def build_kernel(
    compiler: Compiler,
    cache_dir: Path,
    runtime: Path,
    source: Path,
    defines: Mapping[str, str | int],
    arch: int,
    sanitizer: Sanitizer,
) -> Path:
    """The shared library of one ``.cu`` source, linked against ``runtime``."""
    includes = [INCLUDE_DIR]
    sources = read_sources(source, includes)
    macros = [f"-D{name}={value}" for name, value in sorted(defines.items())]
    macros.append(f"-D__CUDA_ARCH__={arch * 10}")
    flags = [*_COMMON_FLAGS, *_KERNEL_FLAGS, *_SANITIZER_FLAGS[sanitizer]]
    contents = [part for path, data in sources.items() for part in (path.name, data)]
    rewriter = Path(__file__).with_name("rewrite.py").read_bytes()
    key = key_of(compiler.identity, " ".join([*flags, *macros]), runtime.name, str(source), rewriter, *contents)

    def build(target: Path) -> None:
        search = [f"-I{folder}" for folder in includes]
        text = compiler.run([*flags, *macros, *search, "-E", "-x", "c++", str(source)], str(source))
        plain = target.with_suffix(".ii")
        try:
            plain.write_text(rewrite(text).text)
            link = [str(runtime), f"-Wl,-rpath,{runtime.parent}"]
            compiler.run([*flags, "-shared", "-fpreprocessed", "-x", "c++", str(plain), "-x", "none", *link, "-o",
                          str(target)], str(source))  # fmt: skip
        finally:
            plain.unlink(missing_ok=True)

    return cached(cache_dir / "emulator" / f"{source.stem}-{key[:32]}.so", build)
