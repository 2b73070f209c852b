"""The arithmetic of merging: pure functions from one tensor of every model to one tensor.

parts.py         what a method is given, and the random stream of a tensor
parameters.py    weights, densities and the like of one tensor, from settings that differ between layers and tensors
table.py         METHODS: every method by its name
"""
