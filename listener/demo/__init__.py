"""The demo, with its own Postgres. ``push-listener run`` imports nothing from here."""
