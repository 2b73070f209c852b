"""Reward models: their folders, their scores and their export. Heads and pooling are `models.tree.heads`.

folders   started from a language model, loaded from anywhere     scoring   responses -> rewards, ensembles
export    saved as `transformers` loads and scores it
"""
