"""Built-in attention over the paged KV cache."""
