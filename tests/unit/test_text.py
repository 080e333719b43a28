from __future__ import annotations

import orjson
from hypothesis import example, given
from hypothesis import strategies as st

from listener.postgres.text import storable, storable_json

# Surrogates and NUL included: what a proxy answers may hold any bytes.
texts = st.text(st.characters(exclude_categories=()), max_size=20)


@given(text=texts)
@example("\u20ac \u4e16 \x00 \ud800")
@example("\\u0000")
def test_what_can_be_stored_stays_and_the_rest_becomes_a_question_mark(text: str) -> None:
    stored = storable(text)
    assert stored == "".join(c if c.isascii() and c != "\0" else "?" for c in text)
    assert orjson.loads(storable_json({"text": text, "number": 1, "none": None})) == {
        "text": stored,
        "number": 1,
        "none": None,
    }
    assert storable_json({"text": text}).isascii()


def test_no_text_stays_none() -> None:
    assert storable(None) is None
