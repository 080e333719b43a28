"""What this project knows of FCM HTTP v1. Nothing here knows of Postgres."""
