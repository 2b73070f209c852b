"""Configurations of Axolotl, LLaMA-Factory, TRL and OpenRLHF as recipes, with a list of what they could not say.

found = convert("axolotl.yaml", processes=8)
found.text       # the recipe, with comments
found.missed     # (Missed("neftune_noise_alpha", 5, why="no noise is added to embeddings", remedy="..."),)
"""

from posttrain.converting.convert import Converted, convert
from posttrain.converting.draft import Missed

__all__ = ["Converted", "Missed", "convert"]
