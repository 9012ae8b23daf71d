"""Speed and memory of this library beside other libraries. See ``python -m benchmarks --help``."""
