"""Built-in loaders of checkpoints."""
