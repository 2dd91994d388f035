"""Tables of a script: values asked for by name and kind, and the line that a refused one stands on."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from math import inf, isfinite
from typing import Any, NoReturn

from stageflow.errors import RequestError
from stageflow.graph import nearest

__all__ = ["Table", "toml_places"]

Where = Callable[[str | None], str | None]
"""The place of a name in a table, or of the table itself, as ``script.toml:12``; ``None`` where there are no lines."""


class Table:
    """A table, and how to refuse what stands in it.

    Args:
        values: What should be a table.
        title: What to call it, as in ``fault 3``; empty for the script itself.
        where: Finds the places of its names.

    Raises:
        RequestError: It is no table. All methods raise it, with the place, for a value that is not what they return.
    """

    def __init__(self, values: object, title: str, where: Where) -> None:
        self.title = title
        self.where = where
        self.values: Mapping[str, Any] = {}
        if not isinstance(values, Mapping):
            self.fail("is no table")
        self.values = values

    def fail(self, message: str, name: str | None = None, hint: str | None = None) -> NoReturn:
        """Refuse the table, or what it has under a name."""
        raise RequestError(
            " ".join(part for part in (self.title, name, message) if part),
            hint=hint or "the README lists what a script may say",
            where=self.where(name),
        )

    def only(self, names: Collection[str]) -> None:
        """Refuse any other name."""
        for name in self.values:
            if name not in names:
                near = nearest(str(name), list(names))
                self.fail("is not known here", str(name), f"did you mean {near}?" if near else None)

    def number(self, name: str, default: Any, *, low: float = 0.0, high: float = inf, above: bool = False) -> Any:
        """A finite number of at least, or above, ``low`` and at most ``high``."""
        value = self.values.get(name, default)
        if value is default:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
            self.fail(f"must be a number, not {value!r}", name)
        if value < low or value > high or (above and value == low):
            bounds = f"{'above' if above else 'at least'} {low:g}" + ("" if high == inf else f" and at most {high:g}")
            self.fail(f"must be {bounds}, not {value!r}", name)
        return float(value)

    def integer(self, name: str, default: Any, *, low: int = 1, high: float = inf) -> Any:
        """A whole number of at least ``low``."""
        value = self.values.get(name, default)
        if value is not default and (not isinstance(value, int) or isinstance(value, bool)):
            self.fail(f"must be a whole number, not {value!r}", name)
        if value is not default and not low <= value <= high:
            self.fail(f"must be at least {low}" + ("" if high == inf else f" and at most {high:g}"), name)
        return value

    def flag(self, name: str) -> bool:
        """Whether it is said to be so."""
        value = self.values.get(name, False)
        if not isinstance(value, bool):
            self.fail(f"must be true or false, not {value!r}", name)
        return value

    def text(self, name: str, default: Any) -> Any:
        """A text that may stand in a header: without control characters."""
        value = self.values.get(name, default)
        if value is not default and not (isinstance(value, str) and value.isprintable() and value.isascii()):
            self.fail(f"must be printable ASCII text, not {value!r}", name)
        return value

    def choice(self, name: str, default: Any, options: Collection[str]) -> Any:
        """One of a few words."""
        value = self.values.get(name, default)
        if value is not default and value not in options:
            self.fail(f"must be one of {', '.join(options)}, not {value!r}", name)
        return value


_HEADER = re.compile(r"\s*\[\[?\s*([^\]]+?)\s*\]\]?\s*(#.*)?$")


def toml_places(text: str, path: str) -> Callable[[str, int], Where]:
    """Finds the lines of a TOML file: of a table by its name, the n-th of that name from 0, and of the names in it.

    tomllib tells the place of what is no TOML, and not of a value. This reads the headers and the beginnings of lines,
    which is where a script has its names; a table written within a line is placed on the line of its own name.
    """
    found: dict[tuple[str, int], dict[str | None, int]] = {("", 0): {None: 1}}
    counts: dict[str, int] = {}
    table = found["", 0]
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            name = header[1].replace('"', "")
            counts[name] = counts.get(name, -1) + 1
            table = found.setdefault((name, counts[name]), {None: number})
        elif name := re.match(r"\s*[\"']?([\w*.-]+)[\"']?\s*=", line):
            table.setdefault(name[1], number)

    def places(title: str, place: int) -> Where:
        lines = found.get((title, place)) or {None: found["", 0].get(title.partition(".")[0], 1)}
        return lambda name: f"{path}:{lines.get(name, lines[None])}"

    return places
