"""The arithmetic of merging: pure functions from one tensor of every model to one tensor.

parts.py         what a method is given, and the random stream of a tensor
parameters.py    weights, densities and the like of one tensor, from settings that differ between layers and tensors
averages.py      linear, passthrough: of the weights themselves
spherical.py     slerp, nuslerp, multislerp, karcher
task_vectors.py  task_arithmetic, ties, dare, della, breadcrumbs: differences to a base, thinned out and added up
thinning.py      how they are thinned out
agreement.py     sce, model_stock, ram: differences weighed by how the models agree
swaps.py         nearswap, arcee_fusion: one model into its base, entry by entry
table.py         METHODS: every method by its name
"""
