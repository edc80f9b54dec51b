"""Kernels that work row by row: the launchers, each beside its source."""
