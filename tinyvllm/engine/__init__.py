"""The engine: requests in, tokens out; who runs when, and where its keys and values live."""
