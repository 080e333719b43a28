"""``push-listener doctor``: examines an installation, says what is wrong with it and what to do. Changes nothing.

Each module is one group of checks. It reads facts, from Postgres, FCM or this machine, and a pure function judges them.
``examination`` makes the checks in their order, each within its limit of time.
"""
