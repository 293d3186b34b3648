"""Primitives that several operators stand on."""
