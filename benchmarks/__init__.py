"""Speed and memory of a training step, measured against TRL on the same rows, model, batch and machine; see README.md.

The peer's side runs in its own virtual environment, so `text`, `record`, `peer_dpo` and `peer_sft` import nothing of
posttrain.
"""
