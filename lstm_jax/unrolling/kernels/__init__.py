"""The JAX primitive and the engine interface that all whole-sequence kernels share."""
