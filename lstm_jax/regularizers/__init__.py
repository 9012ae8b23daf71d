"""Regularisers: cells that wrap a cell, and penalties for a loss."""
