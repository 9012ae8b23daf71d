"""Networks of cells: stacks, and both directions of time."""
