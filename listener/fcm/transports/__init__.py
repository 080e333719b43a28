"""The ways in which requests reach FCM. ``choose`` picks one, ``base`` has the contract that all of them keep."""
