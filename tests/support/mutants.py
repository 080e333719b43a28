"""Copies of a configuration with one mistake each: a validator that is worth its name refuses them all."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Mutant:
    """A document with one mistake in it."""

    where: str
    """The key that was changed, after all that it is in, such as ``services.migrate.image``."""
    document: Any


def misspelt(document: Any) -> Iterator[Mutant]:
    """One copy for each key, in which two neighbouring letters of the key have changed places."""
    for path in _keys(document):
        mutant = copy.deepcopy(document)
        parent = _at(mutant, path[:-1])
        items = [(_swapped(key) if key == path[-1] else key, value) for key, value in parent.items()]
        parent.clear()
        parent.update(items)
        yield Mutant(_name(path), mutant)


def retyped(document: Any) -> Iterator[Mutant]:
    """One copy for each key, whose value is of another type."""
    for path in _keys(document):
        mutant = copy.deepcopy(document)
        parent = _at(mutant, path[:-1])
        parent[path[-1]] = {"x": "x"} if isinstance(parent[path[-1]], str) else "x"
        yield Mutant(_name(path), mutant)


def changed(document: Any, where: str, value: object) -> Any:
    """A copy with another value at ``where``, such as ``services.migrate.image`` or ``vm.0.size``."""
    mutant = copy.deepcopy(document)
    *parents, last = [int(part) if part.isdigit() else part for part in where.split(".")]
    parent = _at(mutant, tuple(parents))
    assert parent[last] != value  # otherwise nothing is changed
    parent[last] = value
    return mutant


def survivors(mutants: Iterator[Mutant], refuses: Callable[[Any], bool]) -> set[str]:
    """Where a mistake was not noticed."""
    return {mutant.where for mutant in mutants if not refuses(mutant.document)}


_Path = tuple[str | int, ...]


def _keys(node: Any, path: _Path = ()) -> Iterator[_Path]:
    """Every key of every mapping, at any depth."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield (*path, key)
            yield from _keys(value, (*path, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _keys(value, (*path, index))


def _at(document: Any, path: _Path) -> Any:
    for part in path:
        document = document[part]
    return document


def _name(path: _Path) -> str:
    return ".".join(map(str, path))


def _swapped(key: str) -> str:
    for index in sorted(range(len(key) - 1), key=lambda each: abs(each - len(key) // 2)):
        if key[index] != key[index + 1]:
            return key[:index] + key[index + 1] + key[index] + key[index + 2 :]
    return key + "x"
