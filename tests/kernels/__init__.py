"""The kernels against their definitions, on every device present."""
