"""The embedded model: a tiny base model with its row files; `tools/embedded` makes both.

MODEL   the folder with weights, tokenizer and card, ready for `transformers`
DATA    the folder with the quickstart's demonstrations, preferences, tasks and held-out prompts
"""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
DATA = Path(__file__).parent / "data"
