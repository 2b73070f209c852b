"""Model folders: finding, loading, saving, reading back and exporting them."""
