"""How much may be claimed and sent."""
