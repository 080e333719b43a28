"""The operator's page: whether pushes go out, what waits, what failed, and what a person does about it."""
