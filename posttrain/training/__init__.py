"""Training: the algorithms' table, the one loop, and what a stage needs around it."""
