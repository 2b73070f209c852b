"""Accuracy against tokens spent: what strategies of test-time compute are worth.

selection.py    from one pool of answers per prompt to every n: best-of-n, majority, weighted
curves.py       points with tokens, seconds and intervals; values at a price between two points
findings.py     what the curves say, in words, with the difference that chance alone would make
difficulty.py   the best strategy by difficulty, chosen on one half of the prompts and measured on the other

Shapes: P prompts, N answers of a pool, K points of a curve, C classes of equal answers, S subsets.
"""
