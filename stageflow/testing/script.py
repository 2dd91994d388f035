"""A script for the test server: what it does to which calls, read from TOML or JSON lines, or given as a mapping.

The three are one format: a TOML file is a mapping; in JSON lines each line is a mapping with some of its names, where
``fault`` and ``limit`` may come again and again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from stageflow.errors import RequestError
from stageflow.testing.capacity import BEYOND, CapacityRule, LimitRule
from stageflow.testing.faults import KINDS, Fault, Latency
from stageflow.testing.tables import Table, Where, toml_places
from stageflow.testing.tally import Price

__all__ = ["PATHS", "Script", "read_script", "script_of"]

PATHS: Final = ("chat/completions", "embeddings")
_WAYS: Final = ("seconds", "ms", "date", "none")
_DRAWN_BY: Final = ("key", "number", "body")
_CONDITIONS: Final = frozenset({"do", "path", "model", "calls", "share"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What a test server does. Everything has a default: without a script it answers at once, and always.

    Args:
        seed: Draws the faults, the latencies and the answers; ``None``: 0, if the server is given none either.
        latency: How long a call takes.
        token_seconds: From one event of a stream to the next, >= 0; the first comes after the latency.
        answer_tokens: At least and at most so many tokens has an answer.
        dimensions: Of an embedding, where a call does not say.
        models: Calls for any other are answered with 404; empty: every name is a model.
        draw_by: What the draws of a call go by. ``"key"``: its Idempotency-Key and how often that came, so that the
            order of calls does not matter, and, where there is none, its number. ``"body"``: likewise by its content.
            ``"number"``: the place in the order of arrival.
        clock_offset: The server's clock, in ``Date`` and in dates, is so many seconds ahead.
        capacity, limits, prices, faults: See the classes. A price for ``"*"`` is that of all other models.
    """

    seed: int | None = None
    latency: Latency = field(default_factory=Latency)
    token_seconds: float = 0.0
    answer_tokens: tuple[int, int] = (16, 16)
    dimensions: int = 64
    models: tuple[str, ...] = ()
    draw_by: str = "key"
    clock_offset: float = 0.0
    capacity: CapacityRule | None = None
    limits: tuple[LimitRule, ...] = ()
    prices: Mapping[str, Price] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()


def read_script(path: str | os.PathLike[str]) -> Script:
    """The script in a file: JSON lines if its name ends in ``.jsonl``, else TOML.

    Raises:
        RequestError: It can't be read or is no script, with the file and the line.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"cannot read the script {file}: {error}", hint="it is a file of TOML or JSON lines"
        ) from None
    if file.suffix == ".jsonl":
        return _from_lines(text, str(file))
    import tomllib  # here, as most servers have no such file

    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        said = re.search(r" \(at line (\d+), .*\)", str(error))
        line = int(said[1]) if said else text.count("\n") + 1
        message = str(error)[: said.start()] if said else str(error).replace(" (at end of document)", "")
        raise RequestError(
            message, hint="a script is TOML, or JSON lines in a .jsonl", where=f"{file}:{line}"
        ) from None
    return script_of(values, toml_places(text, str(file)))


def _from_lines(text: str, path: str) -> Script:
    merged: dict[str, Any] = {"fault": [], "limit": []}
    lines: dict[tuple[str, int], int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        place = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise RequestError(f"no JSON: {error.msg}", hint="each line is an object", where=place) from None
        if not isinstance(values, dict):
            raise RequestError("each line is an object", hint='as in {"latency": 0.5}', where=place)
        for name, value in values.items():
            if name in ("fault", "limit"):
                for each in value if isinstance(value, list) else [value]:
                    lines[name, len(merged[name])] = number
                    merged[name].append(each)
            elif name in merged:
                raise RequestError(f"{name} comes twice", hint="once is enough", where=place)
            else:
                merged[name] = value
                lines[name, 0] = number

    def places(title: str, place: int) -> Where:
        found = lines.get((title.partition(".")[0], place))
        return lambda name: f"{path}:{found or lines.get((name or '', 0), 1)}"

    return script_of(merged, places)


def script_of(values: Mapping[str, Any], places: Callable[[str, int], Where] | None = None) -> Script:
    """The script that a mapping is.

    Args:
        places: Finds the lines for what is refused.

    Raises:
        RequestError: A name is unknown, or a value is not what it should be.
    """
    find = places or (lambda title, place: lambda name: None)
    table = Table(values, "", find("", 0))
    table.only({*Script.__slots__, "limit", "fault"} - {"limits", "faults"})
    models = table.values.get("models", ())
    if isinstance(models, str) or not all(isinstance(model, str) for model in models):
        table.fail("must be a list of names", "models")
    prices = Table(table.values.get("prices", {}), "prices", find("prices", 0))
    capacity = table.values.get("capacity")
    return Script(
        seed=table.integer("seed", None, low=0),
        latency=_latency(table, "latency") or Latency(),
        token_seconds=table.number("token_seconds", 0.0),
        answer_tokens=_tokens(table),
        dimensions=table.integer("dimensions", 64, high=8192),
        models=tuple(models),
        draw_by=table.choice("draw_by", "key", _DRAWN_BY),
        clock_offset=table.number("clock_offset", 0.0, low=-1e10, high=1e10),
        capacity=None if capacity is None else _capacity(Table(capacity, "capacity", find("capacity", 0))),
        limits=tuple(map(_limit, _tables(table, "limit", find))),
        prices={
            name: _price(Table(price, f"prices.{name}", find(f"prices.{name}", 0)))
            for name, price in prices.values.items()
        },
        faults=tuple(map(_fault, _tables(table, "fault", find))),
    )


def _tables(table: Table, name: str, find: Callable[[str, int], Where]) -> list[Table]:
    found = table.values.get(name, [])
    if not isinstance(found, list | tuple):
        table.fail(f"is a list of tables; in TOML each begins with [[{name}]]", name)
    return [Table(values, f"{name} {place}", find(name, place - 1)) for place, values in enumerate(found, 1)]


def _tokens(table: Table) -> tuple[int, int]:
    said = table.values.get("answer_tokens", 16)
    pair = said if isinstance(said, list | tuple) else [said, said]
    good = len(pair) == 2 and all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in pair)
    if not good or not pair[0] <= pair[1] <= 100_000:
        table.fail(
            f"must be a number of tokens, or the least and the most, from 1 to 100000, not {said!r}", "answer_tokens"
        )
    return pair[0], pair[1]


def _latency(table: Table, name: str) -> Latency | None:
    said = table.values.get(name)
    if said is None:
        return None
    if not isinstance(said, Mapping):
        said = {"between": said} if isinstance(said, list | tuple) else {"seconds": said}
    inner = Table(said, f"{table.title} {name}".strip(), lambda _: table.where(name))
    inner.only({"seconds", "between", "median", "sigma", "tail", "times", "most"})
    if len({"seconds", "between", "median"} & inner.values.keys()) != 1:
        inner.fail("needs one of seconds, between and median")
    low = high = inner.number("seconds", 0.0)
    if (between := inner.values.get("between")) is not None:
        if not isinstance(between, list | tuple) or len(between) != 2:
            inner.fail("must be two numbers of seconds", "between")
        ends = Table({"from": between[0], "to": between[1]}, inner.title, inner.where)
        low = ends.number("from", 0.0)
        high = ends.number("to", 0.0, low=low)
    sigma = None
    if "median" in inner.values:
        low = high = inner.number("median", 0.0, above=True)
        sigma = inner.number("sigma", 0.5, above=True, high=10.0)
    elif "sigma" in inner.values:
        inner.fail("goes with median", "sigma")
    return Latency(
        low=low,
        high=high,
        sigma=sigma,
        tail=inner.number("tail", 0.0, high=1.0),
        times=inner.number("times", 1.0, above=True),
        most=inner.number("most", float("inf")),
    )


def _capacity(table: Table) -> CapacityRule:
    table.only(CapacityRule.__slots__)
    if "in_flight" not in table.values:
        table.fail("needs in_flight: how many calls at once")
    return CapacityRule(
        in_flight=table.integer("in_flight", 1),
        beyond=table.choice("beyond", "queue", BEYOND),
        power=table.number("power", 1.0, above=True, high=10.0),
    )


def _limit(table: Table) -> LimitRule:
    table.only(LimitRule.__slots__)
    if not {"requests_per_minute", "tokens_per_minute"} & table.values.keys():
        table.fail("needs requests_per_minute or tokens_per_minute")
    return LimitRule(
        model=table.text("model", None),
        requests_per_minute=table.number("requests_per_minute", None, above=True),
        tokens_per_minute=table.number("tokens_per_minute", None, above=True),
        burst_seconds=table.number("burst_seconds", 60.0, above=True),
        retry_after_as=table.choice("retry_after_as", "seconds", _WAYS),
    )


def _price(table: Table) -> Price:
    table.only(("input", "output"))
    return Price(table.number("input", 0.0), table.number("output", 0.0))


def _fault(table: Table) -> Fault:
    do = table.choice("do", None, KINDS)
    if do is None:
        table.fail("needs do: what happens", hint=f"one of {', '.join(KINDS)}")
    for name in table.values.keys() - _CONDITIONS - KINDS[do]:
        if any(name in options for options in KINDS.values()):
            table.fail(f"does not go with do = {do!r}", name)
    table.only(_CONDITIONS | KINDS[do])
    if do == "reset_before" and "model" in table.values:
        table.fail("is in the body, which reset_before does not read", "model")
    if do == "delay" and not {"seconds", "times"} & table.values.keys():
        table.fail("needs seconds or times")
    path = table.text("path", None)
    if path is not None and (path := path.removeprefix("/").removeprefix("v1/")) not in PATHS:
        table.fail(f"must be one of {', '.join(f'/v1/{path}' for path in PATHS)}", "path")
    if do in ("length", "content_filter"):
        if path == "embeddings":
            table.fail("is nothing that embeddings have", "do")
        path = "chat/completions"
    return Fault(
        do=do,
        path=path,
        model=table.text("model", None),
        calls=_calls(table),
        share=table.number("share", None, high=1.0),
        after=_latency(table, "after"),
        seconds=_latency(table, "seconds"),
        times=table.number("times", 1.0, above=True),
        status=table.integer("status", 500, low=400, high=599),
        code=table.text("code", None),
        message=table.text("message", None),
        retry_after=_retry_after(table),
        retry_after_as=table.choice("retry_after_as", "seconds", _WAYS),
        at=table.number("at", 0.5, high=1.0),
        clean=table.flag("clean"),
        bytes=table.integer("bytes", 1),
        pause=table.number("pause", 0.05, above=True),
        content_type=table.text("content_type", "text/html"),
    )


def _retry_after(table: Table) -> Any:
    if isinstance(table.values.get("retry_after"), str):
        return table.text("retry_after", None)
    return table.number("retry_after", None, above=True, high=1e9)


def _calls(table: Table) -> tuple[range, ...] | None:
    """Numbers, and spans of them as ``"5-9"`` and ``"100-"``."""
    said = table.values.get("calls")
    if said is None:
        return None
    found = []
    for part in said if isinstance(said, list | tuple) else [said]:
        span = re.fullmatch(r"(\d+)(?:-(\d*))?", str(part)) if isinstance(part, int | str) else None
        first = int(span[1]) if span else 0
        last = first if span is None or span[2] is None else int(span[2] or 10**18)
        if not 1 <= first <= last:
            table.fail(f'must be numbers from 1 or spans as "5-9" and "100-", not {part!r}', "calls")
        found.append(range(first, last + 1))
    return tuple(found)
