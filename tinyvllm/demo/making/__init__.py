"""How the demo checkpoint was made: corpus, tokenizer, training. Needs torch; nothing of the engine imports it."""
