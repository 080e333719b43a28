"""The demo, with a Postgres of its own. ``push-listener run`` imports none of it."""
