"""Choosing tokens by CUDA kernels: the launchers, each beside its source."""
