"""What all searches stand on: one file each for what they share, so that a strategy reads as its paper does.

frontier.py    answers that grow side by side: draw next steps, score, keep some, choose at the end
tree.py        states with visits and values: UCT, backing up (MCTS)
thoughts.py    what the model is asked about its own thoughts, and how its replies are read
values.py      scores as numbers from 0 to 1, and resampling by weights
"""
