"""How fast the library is, measured against the plain scan. ``python -m benchmarks --help``."""
