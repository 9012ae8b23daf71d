"""The cells, one file each: equations, mathematics, hyperparameters."""
