"""Prompts that models write: from a bare template, after seed tasks, by evolution, and in the voice of personas."""
