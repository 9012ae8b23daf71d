"""The primitive and the engine interface that whole-sequence kernels share."""
