"""``python -m tinyvllm``."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; its exit code. Being interrupted while modules are imported is no traceback either."""
    try:
        from tinyvllm.cli.main import main as run

        return run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except MemoryError:
        sys.stderr.write("error: memory ran out while tinyvllm was imported; raise its limit (ulimit -v)\n")
        return 5


if __name__ == "__main__":
    sys.exit(main())
