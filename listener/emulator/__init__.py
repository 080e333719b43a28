"""A local FCM HTTP v1 and OAuth token server, with faults on demand.

The other side of the contract: it knows nothing of ``listener.fcm``, so that a mistake made there is not
made here as well.
"""

from listener.emulator.faults import FAULTS, Fault, parse_fault
from listener.emulator.received import Received
from listener.emulator.run import run
from listener.emulator.server import Emulator

__all__ = ["FAULTS", "Emulator", "Fault", "Received", "parse_fault", "run"]
