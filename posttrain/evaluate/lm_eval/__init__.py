"""lm-evaluation-harness on posttrain's engine: its tasks, few-shot examples, filters and metrics, our answers.

bridge.py       `lm_eval.api.model.LM` over a model that is in memory; the one file that imports lm-eval when loaded
likelihood.py   how likely continuations are: those of one context share its tokens in one tree
tasks.py        names, files and folders of tasks; what is refused before a model is asked
results.py      what lm-eval measured as figures with intervals, and a line for each document
"""
