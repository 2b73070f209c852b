"""Whole models as GGUF files, for llama.cpp, Ollama and what is built on them.

architectures.py  which there are, with their keys; a model of another one is refused by name
tokenizer.py      the vocabulary, and which of llama.cpp's ways to cut a text it was learnt with
write.py          the file, read back and compared before it has its name
modelfile.py      the file that Ollama makes a model from
"""
