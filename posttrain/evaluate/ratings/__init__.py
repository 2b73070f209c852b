"""Who is better, by games: win rates, length-controlled ones, and Bradley-Terry ratings of several policies.

    record = rate("votes.jsonl")          # games of a file: own layout, LMArena's, AlpacaEval's, Arena-Hard's
    print(table(record))

games      the nouns            layouts         rows of files -> games
style      how an answer looks  logistic        the one fit, for many resamples at once
length     the GLM of AlpacaEval 2              bradley_terry   ratings on Elo's scale
rate       all of it as one record
"""
