"""Benchmarks: speed as a ratio to a peer or to what the machine can do, measured in the same run."""
