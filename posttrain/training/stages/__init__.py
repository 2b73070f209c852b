"""The kinds of stage, a file each, and `table.py`, which names them all.

table.py                kind by the type of a stage's settings: read this first
kind.py                 what a kind is: a record of functions, and what they hand to each other
prepare.py  run.py      before step 1, and the whole stage with its records: the same for every kind
rows.py  reward.py  sampling.py  correction.py      the kinds
"""
