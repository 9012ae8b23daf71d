"""Running a cell or a network over time: ``unroll`` and its implementations."""
