"""The files of examples/, and the users that they are tried with."""

from __future__ import annotations

from uuid import UUID

from tests.support.service import PROJECT

DIRECTORY = PROJECT / "examples"

ANN = UUID("a0000000-0000-4000-8000-00000000000a")
"""A customer."""
BOB = UUID("b0000000-0000-4000-8000-00000000000b")
"""A courier."""
EVE = UUID("e0000000-0000-4000-8000-00000000000e")
"""Somebody else who is signed in."""


def example_sql(name: str) -> bytes:
    """The text of a file in examples/sql."""
    return (DIRECTORY / "sql" / name).read_bytes()
