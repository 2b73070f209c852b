"""Many runs of one recipe: a design of settings and seeds, stages that are shared, one table, and an honest best.

axes -> what is varied            designs, optuna_design -> which settings      asha -> which of them go on
plan -> the runs and their cost   sweep -> runs them, resumably                 results, choice -> the table
"""
