"""Public names of what is defined elsewhere: ``_collections.deque`` is known as ``collections.deque``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Module:
    """What one module defines and takes from others, as read from its source or from the compiled module."""

    name: str
    docs: list[tuple[str, str]]  # (qualified name, docstring)
    imports: list[tuple[str, str]]  # (module, name or "*") of each `from module import name`
    exports: frozenset[str] | None  # a literal __all__


class Public:
    """Follows re-exports from the place of definition to the name a user writes.

    Args:
        modules: All modules of the library; what they import from one another says who re-exports what.
    """

    def __init__(self, modules: list[Module]) -> None:
        known = {module.name: module for module in modules}
        self._modules = known.keys()
        self._renamed = {os.path.__name__: "os.path", "genericpath": "os.path"}
        # A module that takes everything over is the public home; one that names a few only uses them.
        for whole in (True, False):
            for module in modules:
                for origin, name in module.imports if not is_private(module.name) else []:
                    if origin in known and _is_part(origin, module.name) and whole == (name == "*"):
                        for each in _exported(known[origin], known) if whole else [name]:
                            self._renamed.setdefault(f"{origin}.{each}", f"{module.name}.{each}")

    def name(self, name: str) -> str:
        """Return the public name of a qualified name; the same name where nothing re-exports it."""
        for _ in range(4):  # a few steps: _sqlite3, sqlite3.dbapi2, sqlite3
            known = (prefix for prefix in _prefixes(name) if prefix in self._renamed)
            prefix = next((prefix for prefix in known if prefix != name or name not in self._modules), None)
            if prefix is None:
                break
            name = self._renamed[prefix] + name[len(prefix) :]
        return name


def is_private(name: str) -> bool:
    """Tell whether a part of a qualified name has a leading underscore; dunders are public."""
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def _is_part(origin: str, module: str) -> bool:
    return is_private(origin) or origin.startswith(f"{module}.") or origin in {"posix", "nt"}


def _exported(module: Module, known: Mapping[str, Module]) -> Iterable[str]:
    if module.exports is not None:
        return sorted(module.exports)
    depth = module.name.count(".") + 1
    found = {name.split(".")[depth] for name, _ in module.docs if name.count(".") >= depth}
    whole = {origin for origin, name in module.imports if name == "*"}
    passed_on = (known[origin] for origin in sorted(whole) if origin in known and is_private(origin))
    return sorted(found.union(*(_exported(origin, known) for origin in passed_on)))


def _prefixes(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]
