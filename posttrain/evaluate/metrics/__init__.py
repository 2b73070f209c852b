"""How like a reference text an answer is: pure functions, and what each adds to a figure of all rows."""
