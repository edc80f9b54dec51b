"""Built-in kernels: implementations of named ops."""
