"""Every operation defined in NumPy, one op a file; kernels are right when they equal these."""
