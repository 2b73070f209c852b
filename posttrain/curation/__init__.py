"""Which rows to keep: a pipeline of named steps, each of which says what it took and why.

decontaminate -> score -> deduplicate -> diversify -> budget, and beside every selection its random twin.

picked = pt.select("chat.jsonl", steps=[{"kind": "deduplicate"}, {"kind": "budget", "rows": 1000}], out="picked")

pipeline   select                 rows        Rows, Pool, Taken: what a step is given and what it says
selection  Selection, written     twin        the random rows that a selection has to beat
steps/     a function a step      scores/     a function a score
stored     results by content, so that nothing is computed twice
"""
