"""Products made of the instructions of Hopper cards: the launchers, each beside its source."""
