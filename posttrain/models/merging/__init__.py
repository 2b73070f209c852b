"""Merging models: `methods` has the arithmetic of each method, on one tensor of every model at a time."""
