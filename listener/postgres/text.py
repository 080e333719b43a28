"""Makes the texts of this service storable in a database of any encoding. Pure."""

from __future__ import annotations

from typing import overload

import orjson


@overload
def storable(text: str) -> str: ...
@overload
def storable(text: None) -> None: ...
def storable(text: str | None) -> str | None:
    """A text with ``?`` for each character that some database cannot store.

    Every server encoding has ASCII, and Postgres stores no NUL. FCM's words, the names of hosts and the like may have
    other characters, and must not keep a result from being written.
    """
    if text is None or (text.isascii() and "\0" not in text):
        return text
    return text.encode("ascii", "replace").decode().replace("\0", "?")


def storable_json(values: dict[str, object]) -> str:
    """A JSON object, with ``?`` for each character that some database cannot store.

    Only texts that are values of ``values`` itself may hold such characters.
    """
    try:
        encoded = orjson.dumps(values)
    except orjson.JSONEncodeError:  # half of a surrogate pair is no Unicode
        pass
    else:
        if encoded.isascii() and b"\\u0000" not in encoded:
            return encoded.decode()
    return orjson.dumps(
        {key: storable(value) if isinstance(value, str) else value for key, value in values.items()}
    ).decode()
