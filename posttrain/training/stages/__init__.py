"""Kinds of stage: what each reads, trains and leaves behind; `run` is a whole stage with its records."""
