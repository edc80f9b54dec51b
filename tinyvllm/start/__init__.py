"""From a configuration to a running engine, once: files, devices, weights, memory, plugins."""
