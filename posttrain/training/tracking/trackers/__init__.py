"""The trackers, one file each; `table.py` lists them."""
