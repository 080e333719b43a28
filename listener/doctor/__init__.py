"""``push-listener doctor``: examines an installation, says what is wrong and what to do. It changes nothing.

Each module is one group of checks. It reads facts, from Postgres, FCM or this machine, and a pure function judges them.
``examination`` makes the checks in order, each within its time limit.
"""
