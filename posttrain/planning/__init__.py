"""What a recipe will take before it is run: memory of each rank, operations, seconds, bytes between the cards.

    plan = posttrain.planning.plan.plan("recipe.yaml", gpus=64, gpu="h100-80gb", nodes=8)

No card is asked for and no weight is read: models are shapes (`skeleton.py`), and what a step holds at a time is traced
through posttrain's own forward and backward pass on tensors without memory (`trace.py`).
"""
