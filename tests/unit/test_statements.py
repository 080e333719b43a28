"""The statements in .sql files: how they are read, and that the tests of statements read all of them."""

from __future__ import annotations

import re
from pathlib import Path

import listener
from listener.postgres.statements import load
from tests.support import attacks

PACKAGE = Path(listener.__file__).parent
# doctor sets the search_path of each of its transactions (listener/doctor/looking.py).
FILES = sorted(file for file in PACKAGE.glob("*/sql/*.sql") if file.parents[1].name != "doctor")


def test_comments_are_left_out_and_parts_are_inserted(tmp_path: Path) -> None:
    (tmp_path / "sql").mkdir()
    (tmp_path / "sql" / "look.sql").write_text("-- Why.\nselect 1\n  -- How.\n  from ({part}) s\n")
    assert load(str(tmp_path / "module.py"), "look", part="select 2") == "select 1\n  from (select 2) s"


def test_what_looks_like_a_part_is_left_alone_where_none_is_given(tmp_path: Path) -> None:
    (tmp_path / "sql").mkdir()
    (tmp_path / "sql" / "look.sql").write_text("select '{}'\n")
    assert load(str(tmp_path / "module.py"), "look") == "select '{}'"


def test_every_file_is_among_the_statements_that_are_attacked() -> None:
    attacked = attacks.statements().values()
    for file in FILES:
        first, *others = re.split(r"(?<!\{)\{\w+\}", load(str(file.parents[1] / "module.py"), file.stem))
        pieces = [piece.strip() for piece in (first, *others)]
        if others:  # where parts are inserted, braces stand twice
            pieces = [piece.replace("{{", "{").replace("}}", "}") for piece in pieces]
        assert any(all(piece in statement for piece in pieces) for statement in attacked), file
