"""A local FCM HTTP v1 and OAuth token server, with faults on demand.

The other side of the contract: it knows nothing of ``listener.fcm``, so that a mistake made there is not
made here as well.
"""

from .faults import FAULTS, Fault, parse_fault
from .received import Received
from .run import run
from .server import Emulator

__all__ = ["FAULTS", "Emulator", "Fault", "Received", "parse_fault", "run"]
