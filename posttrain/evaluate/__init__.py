"""Evaluation: suites of prompts with what makes an answer good, their runner, and figures with intervals."""
