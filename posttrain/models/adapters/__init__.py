"""Adapters: LoRA and its kin, the folders that they come in, folding them into the weights and mixing them.

configs   a recipe's record -> `peft`'s configuration     facts     what a folder says of itself
kinds     a fresh adapter on a model, questions about it  folders   a saved adapter onto its base
folding   into a copy's weights                           combine   several into one model: `posttrain merge`
size      whether a rank fits, before it is made    methods   its ways, by name
"""
