"""The run folder: one record per kind of line, the files that hold them, and what reads them back.

Standard library only, so that a report needs nothing else.
"""
