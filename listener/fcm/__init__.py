"""FCM HTTP v1: messages, access tokens, requests, and what the answers mean. Nothing here knows of Postgres."""
