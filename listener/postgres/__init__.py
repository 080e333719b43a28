"""Everything that the running service asks of Postgres."""
