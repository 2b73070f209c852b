"""Adapters: LoRA and its kin, the folders that they come in, folding them into the weights and mixing them."""
