"""Text for people, on standard output or standard error."""

from __future__ import annotations

from typing import NoReturn

import rich.console


class Console(rich.console.Console):
    """rich's, which leaves it to the command line to end well when whoever reads our output has gone."""

    def on_broken_pipe(self) -> NoReturn:
        """rich itself would exit with code 1, as if something had failed."""
        raise BrokenPipeError
