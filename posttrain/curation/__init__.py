"""Which rows to keep: a pipeline of named steps, each of which says what it took and why.

decontaminate -> score -> deduplicate -> diversify -> budget, and beside every selection its random twin.
"""
