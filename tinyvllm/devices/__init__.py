"""Devices: memory, compilation, launches, graphs; they know no model."""
