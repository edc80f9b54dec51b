"""``python -m tinyvllm``."""

from __future__ import annotations

import sys

from tinyvllm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
