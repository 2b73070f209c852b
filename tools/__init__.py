"""What developers of posttrain run now and then; nothing here is part of the package."""
