"""The database layer: migrations, their export, retention, and who may do what."""
