"""Products with weights, for few rows or with one order of sums: the launchers, each beside its source."""
