"""The ways in which requests reach FCM."""
