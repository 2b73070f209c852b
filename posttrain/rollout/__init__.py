"""Rollouts: token ids in, sampled token ids out.

`engine` is the interface, `sampling` the distribution, `native` the engine that needs nothing else.
"""
