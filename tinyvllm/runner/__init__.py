"""A step on a device: arrays up, the model, the tokens chosen, results down."""
