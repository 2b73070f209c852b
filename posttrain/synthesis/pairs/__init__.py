"""Preference pairs that models make: its best and worst answers, judged ones, revisions, and spoilt answers."""
