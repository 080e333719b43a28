"""The demonstration, with a Postgres of its own."""
