"""How fast the library is, measured against its peers. ``python -m benchmarks --help``."""
