"""Rollouts: token ids in, sampled token ids out.

`engine` is the interface, `sampling` the distribution, `native` the engine that needs nothing else; `vllm_served` and
`vllm_colocated` are engines over vLLM, and `weight_sync` proves that an engine has the trainer's weights.
"""
