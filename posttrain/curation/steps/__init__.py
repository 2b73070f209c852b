"""The steps of a selection, one function a step: (settings, pool, tools) -> Taken. `table.py` names them all."""
