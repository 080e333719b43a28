"""The operator's page: it shows whether pushes go out, what waits and what failed, and lets a person act on pushes."""
