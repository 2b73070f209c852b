"""Rows as vectors of length 1, so that a product of two says how alike they are; computed once and kept on disk."""
