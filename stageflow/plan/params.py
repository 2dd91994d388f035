"""The values of a job's parameters, as its functions take them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stageflow.graph import nearest

__all__ = ["Params"]


class Params(Mapping[str, Any]):
    """The job's parameters: ``params["model"]`` and ``params.model`` are the same."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __getattribute__(self, name: str) -> Any:
        # A parameter may be called "items": its value comes before the method of a mapping.
        values = object.__getattribute__(self, "__dict__").get("_values", {})
        return values[name] if name in values else object.__getattribute__(self, name)

    def __getattr__(self, name: str) -> Any:
        # Neither a parameter nor an attribute: only then is this asked.
        if name.startswith("__") or name == "_values":
            raise AttributeError(name)
        near = nearest(name, self._values)
        raise AttributeError(f"the job has no parameter {name!r}" + (f"; did you mean {near!r}?" if near else ""))

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Params({self._values!r})"
