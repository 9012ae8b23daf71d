"""Weights of other libraries, in and out: pure functions over mappings of arrays."""
