"""Preference pairs that models make: the policy's best and worst, judged ones, revisions, and answers spoilt on purpose."""
