"""The calls of SQL functions in code for phones, in any of its languages."""

from __future__ import annotations

import re
from dataclasses import dataclass

_CALL = re.compile(r"""\brpc(?:<[^('"]*>)?\(\s*['"](\w+)['"]|/rest/v1/rpc/(\w+)""")
_ARGUMENT = re.compile(r"""['"]?\b(p_\w+)['"]?\s*:""")
_NAME = re.compile(r"\bp_\w+")


@dataclass(frozen=True)
class Call:
    """A function of the database, and the arguments that a call names."""

    function: str
    arguments: frozenset[str]


def calls(code: str) -> list[Call]:
    """The calls in a file. The arguments of a call stand between its name and the next call's.

    Raises ``ValueError`` if the file names an argument in any other place.
    """
    found = list(_CALL.finditer(code))
    starts = [*(match.start() for match in found), len(code)]
    result = [
        Call(match[1] or match[2], frozenset(_ARGUMENT.findall(code, match.end(), end)))
        for match, end in zip(found, starts[1:], strict=True)
    ]
    stray = set(_NAME.findall(code)) - {name for call in result for name in call.arguments}
    if stray:
        raise ValueError(f"arguments outside of calls: {sorted(stray)}")
    return result
