"""Cells and networks over the devices of a mesh."""
