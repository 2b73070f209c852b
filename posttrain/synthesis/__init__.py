"""Rows that models make: a teacher's answers, the best of a policy's own, pairs, and prompts; each with its origin."""
