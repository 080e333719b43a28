"""A local FCM HTTP v1 and OAuth token server, with faults on demand.

It is the other side of the contract. It imports nothing of the service, so that it does not repeat a mistake of
``listener.fcm``.
"""

from listener.emulator.faults import FAULTS, Fault, parse_fault
from listener.emulator.received import Received
from listener.emulator.run import run
from listener.emulator.server import Emulator

__all__ = ["FAULTS", "Emulator", "Fault", "Received", "parse_fault", "run"]
