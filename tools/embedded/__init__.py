"""What made the embedded model and its rows: `python -m tools.embedded.make_model`."""
