"""Regularisers: wrappers of cells, and penalties for the loss."""
