"""Many processes as one: who takes which part of a step, and how the parts come together."""
