"""RSA key pairs for the emulators of this process, made once and used again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from listener.emulator import oauth

PAIRS = 4
"""Emulators that a test has at the same time need different pairs, and no test has more than this."""

SHORT = 1024
"""Bits; the emulator itself takes 2048. The shortest that the library makes."""


@contextmanager
def few() -> Iterator[None]:
    """Emulators take turns at a few key pairs, and a private key that is read again is not checked again.

    To make a pair takes 70 ms of a processor, and to check one that is read 50 ms: together more than a test needs for
    the rest of the service's start. The pairs are short, because each process that a test starts checks one.
    """
    numbers = count()

    @cache
    def pair(number: int, public_exponent: int) -> rsa.RSAPrivateKey:
        return rsa.generate_private_key(public_exponent, SHORT)

    def generate_private_key(public_exponent: int, key_size: int) -> rsa.RSAPrivateKey:
        return pair(next(numbers) % PAIRS, public_exponent)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oauth, "rsa", SimpleNamespace(generate_private_key=generate_private_key))
        # google-auth calls it through this module. A key that is refused is not remembered, because that raises.
        patch.setattr(serialization, "load_pem_private_key", cache(serialization.load_pem_private_key))
        yield
