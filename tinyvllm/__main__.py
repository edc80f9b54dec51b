"""``python -m tinyvllm``."""

from __future__ import annotations

import sys

_CAPACITY = 5
_INTERRUPTED = 130


def main() -> int:
    """Run the command line; its exit code. That the modules of it cannot be imported has a line as well."""
    try:
        from tinyvllm.cli.main import main as run
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return _INTERRUPTED
    except Exception as error:
        # Without memory for it a library may fail in any way.
        if not isinstance(error, MemoryError) and not _is_memory_limited():
            raise
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        sys.stderr.write(f"error: too little memory to import tinyvllm ({reason}); raise its limit (ulimit -v)\n")
        return _CAPACITY
    return run()


def _is_memory_limited() -> bool:
    try:
        import resource
    except ImportError:  # not on Windows
        return False
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


if __name__ == "__main__":
    sys.exit(main())
