"""Test-time compute: what to do with a model beside drawing one answer from it.

    solve("embedded", ["What is 17 + 25?"], BestOfN(n=16, scorer="runs/quickstart/reward/model"))

solution.py     what came of a prompt: the answer, all that was tried, what it cost, why it stopped
solving.py      what a strategy does it with: drawing, scoring, counting, one prompt at a time
table.py        STRATEGIES: settings -> the function that carries them out
strategies/     one file a strategy
scorers.py      who says how good an answer is
answers.py      when two answers are the same one
run.py          many prompts side by side, from names to solutions

A strategy is a coroutine over one prompt. Its requests join the engine's running batch beside those of other prompts
(`Engine.generate_one`), so it is written as its paper has it, sequentially, and still fills the batch.
"""
