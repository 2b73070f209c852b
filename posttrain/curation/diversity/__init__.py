"""Rows that are unlike each other: rules on vectors, each a pure function of `choose.py`'s table.

    chosen = choose(features, KCentre(kind="k_centre"), budget=1000)
    chosen.kept                     # rows in the order of choice
    chosen.removals()               # every other row: its reason, the kept row nearest to it, and their cosine

Suffixes: R rows that were given, K rows that were chosen, D dimensions of a vector. Vectors are float32, of length 1
(or 0: a row that has nothing to compare), so that a product of two is their cosine. Ties go to the earlier row.
"""
