"""Speed and memory of this library, compared with other libraries. See ``python -m benchmarks --help``."""
