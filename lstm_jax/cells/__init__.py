"""Recurrent cells, one file each: equations, step, hyperparameters."""
