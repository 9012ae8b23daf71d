"""Cells and networks sharded over a mesh of devices."""
