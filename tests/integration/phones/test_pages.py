"""The code of docs/flutter.md and docs/javascript.md is what the files hold, can be parsed, and is up to date."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tree_sitter
import tree_sitter_dart
import tree_sitter_swift

from tests.support import typescript_tools
from tests.support.phone_calls import calls
from tests.support.phone_pages import CODE, PAGES, shown, sources
from tests.support.service import Rows

PARSERS: dict[str, Callable[[], object]] = {
    ".dart": tree_sitter_dart.language,
    ".swift": tree_sitter_swift.language,
}
PARSED = [path for path in sources() if path.suffix in PARSERS]
PHONE_FUNCTIONS = {
    "register_device",
    "unregister_device",
    "record_delivery_receipt",
    "record_delivery_receipts",
    "flush_telemetry",
}


def test_the_pages_show_each_file_once_and_as_it_is() -> None:
    blocks = [block for page in PAGES for block in shown(page)]
    assert sorted(block.file for block in blocks) == sources()
    stale = [block.file.name for block in blocks if block.code != block.file.read_text()]
    assert stale == [], "scripts/phone-pages writes them"


def test_the_pages_link_each_request() -> None:
    for page in PAGES:
        text = page.read_text()
        assert {
            name for name in PHONE_FUNCTIONS if f"(phones/requests/{name}.http)" in text
        } == PHONE_FUNCTIONS


def faults(code: bytes, language: Callable[[], object]) -> Iterator[str]:
    """What a parser does not understand, or misses."""
    nodes = [tree_sitter.Parser(tree_sitter.Language(language())).parse(code).root_node]
    while nodes:
        node = nodes.pop()
        if node.is_error or node.is_missing:
            yield f"line {node.start_point.row + 1}: {node.type}"
        nodes.extend(node.children)


@pytest.mark.parametrize("path", PARSED, ids=lambda path: path.name)
def test_dart_and_swift_can_be_parsed(path: Path) -> None:
    code, language = path.read_bytes(), PARSERS[path.suffix]
    assert list(faults(code, language)) == []
    without_brace = code[: code.rindex(b"}")] + code[code.rindex(b"}") + 1 :]
    assert list(faults(without_brace, language)) != []


async def test_each_call_names_a_function_and_arguments_that_exist(rows: Rows) -> None:
    found = await rows.query(
        "select proname, proargnames[:pronargs] as names, pronargs - pronargdefaults as required from pg_proc "
        "where pronamespace = 'public'::regnamespace and prokind = 'f'"
    )
    functions = {row["proname"]: row for row in found}
    named: dict[str, set[str]] = {}
    for path in sources():
        for call in calls(path.read_text()):
            function = functions[call.function]
            assert call.arguments <= set(function["names"]), (path.name, call)
            assert call.arguments >= set(function["names"][: function["required"]]), (path.name, call)
            named.setdefault(path.suffix, set()).add(call.function)
    assert named == {
        ".dart": PHONE_FUNCTIONS,
        ".ts": PHONE_FUNCTIONS,
        ".swift": {"record_delivery_receipt"},
    }


@pytest.mark.parametrize(
    ("function", "argument"), [("record_delivery_receipts", "p_receipts"), ("flush_telemetry", "p_payloads")]
)
@pytest.mark.parametrize("suffix", [".dart", ".ts"])
def test_elements_have_the_keys_of_the_requests(function: str, argument: str, suffix: str) -> None:
    body = (CODE / f"requests/{function}.http").read_text().partition("\n\n")[2]
    keys = {key for element in json.loads(body)[argument] for key in element}
    code = "".join(path.read_text() for path in sources() if path.suffix == suffix)
    assert keys - set(re.findall(r"\b\w+\b", code)) == set()


def test_typescript_is_content(tmp_path: Path) -> None:
    project = typescript_tools.project(tmp_path)
    for config in ("tsconfig.page.json", "tsconfig.worker.json"):
        assert typescript_tools.run(project, "tsc", "-p", config) == ""
    worker = project / "service-worker.ts"
    worker.write_text(worker.read_text().replace("payload.notification", "payload.notificaton"))
    assert "TS2551" in typescript_tools.run(project, "tsc", "-p", "tsconfig.worker.json")
