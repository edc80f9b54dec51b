"""What commands do once a model is loaded: generate, batch files, chat. Commands parse arguments and call these."""
