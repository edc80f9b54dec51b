"""Named operations: what they mean, how fused ones are made of simple ones, and who implements them."""
