"""Merging whole models: `run.merge_models` streams them tensor by tensor, `methods` computes, `refusals` says no."""
