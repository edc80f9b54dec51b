"""What transformers says that small random checkpoints answer, and the comparison of the engine with it."""
