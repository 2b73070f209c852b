"""Model folders: finding, loading, saving, reading back and exporting them.

source    a name -> what lies there (catalogue, hub, manifest)      loading   a source -> model and tokenizer
export    a model -> a folder, proven by readback                   spoken    how the model in a folder is spoken to
"""
