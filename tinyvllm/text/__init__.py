"""Text: tokenizers, chat templates, text from tokens as they come, stop strings. Knows nothing about models."""
