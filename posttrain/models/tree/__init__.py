"""Log-probs over token trees: the one forward, its fast path and the padded oracle that it is held against."""
