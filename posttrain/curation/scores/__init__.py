"""What a row is worth, one function a score: (settings, pool, tools) -> float64 [R]. `table.py` names them all."""
