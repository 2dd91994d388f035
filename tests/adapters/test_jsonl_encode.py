"""Writing a record: JSON or a refusal that names the place, never something else."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import uuid
from collections import OrderedDict, namedtuple
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stageflow.adapters.jsonl.encode import encode_leniently, encode_strictly
from stageflow.adapters.jsonl.lines import LineParser
from stageflow.errors import ResultError
from stageflow.item import ReadOnlyDict

INF, NAN = float("inf"), float("nan")
BIG = 10**30 + 1
Point = namedtuple("Point", "x y")


class Colour(enum.Enum):
    RED = "red"
    ENDLESS = INF


class Ratio(float):
    pass


@dataclasses.dataclass
class Answer:
    text: Any
    _private: Any = 0


class Rude:
    def __repr__(self) -> str:
        raise ValueError("no")


def deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


def circular() -> Any:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**300), 10**300)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(["null", "\u2028\u0085\r\n\0", "NaN"]),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(), values, max_size=4),
    max_leaves=12,
)
RECORDS = st.dictionaries(st.text(), JSON_VALUES, max_size=5)


@given(st.lists(RECORDS, max_size=5), st.integers(1, 64))
def test_what_is_written_is_read_back_equal(records: list[dict[str, Any]], block: int) -> None:
    data = b"".join(map(encode_strictly, records))
    assert data.count(b"\n") == len(records)
    parser = LineParser("-", 1024 * 1024)
    seen: list[Any] = []
    for at in range(0, len(data), block):
        seen += parser.feed(data[at : at + block]) or ()
    seen += parser.finish() or ()
    assert seen == list(enumerate(records))
    assert repr(seen) == repr(list(enumerate(records)))  # 1 and 1.0 and True are equal, and not the same


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ({"a": (1, [2])}, b'{"a":[1,[2]]}\n'),
        ({"a": Point(1, 2)}, b'{"a":[1,2]}\n'),
        ({"a": Colour.RED, "b": BIG}, b'{"a":"red","b":1000000000000000000000000000001}\n'),
        ({"a": Ratio(0.5)}, b'{"a":0.5}\n'),
        (ReadOnlyDict(a=1), b'{"a":1}\n'),
        (OrderedDict(b=1, a=-BIG), b'{"b":1,"a":-1000000000000000000000000000001}\n'),
        ({"a": Answer("é")}, '{"a":{"text":"é"}}\n'.encode()),
        ({"a": Answer(BIG), "b": "é"}, '{"a":{"text":1000000000000000000000000000001},"b":"é"}\n'.encode()),
        ({"a": None, "b": "null"}, b'{"a":null,"b":"null"}\n'),
        ({"a": datetime.date(2026, 1, 2), "b": BIG}, b'{"a":"2026-01-02","b":1000000000000000000000000000001}\n'),
        ({"a": uuid.UUID(int=1)}, b'{"a":"00000000-0000-0000-0000-000000000001"}\n'),
        ({Colour("red").value: 1}, b'{"red":1}\n'),
    ],
)
def test_what_json_can_hold_is_written(value: Any, line: bytes) -> None:
    assert encode_strictly(value) == encode_leniently(value) == line


@given(
    st.dictionaries(st.text(max_size=3), JSON_VALUES | st.floats() | st.lists(st.floats()), max_size=20),
    st.integers(0, 3000),
)
def test_a_number_that_json_lacks_is_found_in_a_record_of_any_length(record: dict[str, Any], length: int) -> None:
    record["text"] = "x" * length
    try:
        expected = json.dumps(record, allow_nan=False)
    except ValueError:
        with pytest.raises(ResultError):
            encode_strictly(record)
    else:
        assert json.loads(encode_strictly(record)) == json.loads(expected)


REFUSED: list[tuple[Any, str]] = [
    ({"a": {"b": {1}}}, "not JSON: set at $.a.b"),
    ({"a": [1, b"x"]}, "not JSON: bytes at $.a[1]"),
    ({"a b": {"c": object()}}, 'not JSON: object at $["a b"].c'),
    ({"a": Answer}, "not JSON: type at $.a"),
    ({"a": NAN}, "not JSON: NaN at $.a"),
    ({"a": [INF]}, "not JSON: Infinity at $.a[0]"),
    ({"a": ({"b": -INF},)}, "not JSON: -Infinity at $.a[0].b"),
    ({"a": Answer(NAN)}, "not JSON: NaN at $.a.text"),
    ({"a": Colour.ENDLESS}, "not JSON: Infinity at $.a"),
    ({"a": BIG, "b": NAN}, "not JSON: NaN at $.b"),
    ({"a": {1: 2}}, "not JSON: key of type int at $.a"),
    ({"a": {None: 2}, "b": BIG}, "not JSON: key of type NoneType at $.a"),
    ({"a": "x\ud800"}, "not JSON: lone surrogate at $.a"),
    ({"\udfff": 1}, "not JSON: lone surrogate at $"),
    ({"a": 10**5000}, "not JSON: integer of too many digits at $.a"),
    ({"a": deep(254)}, "not JSON: nesting deeper than 254, or a value inside itself"),
    ({"a": deep(100_000)}, "not JSON: nesting deeper than 254, or a value inside itself"),
    ({"a": [{"b": deep(252)}], "c": BIG}, "not JSON: nesting deeper than 254, or a value inside itself"),
    (circular(), "not JSON: nesting deeper than 254, or a value inside itself"),
    ({"a": NAN, "b": "x" * 3000}, "not JSON: NaN at $.a"),
    ({"a": "x" * 3000, "b": INF}, "not JSON: Infinity at $.b"),
    ({"a": "x" * 3000, "b": [-INF]}, "not JSON: -Infinity at $.b[0]"),
    ({"a": "x" * 3000, "b": Colour.ENDLESS}, "not JSON: Infinity at $.b"),
    ({"a": ["x" * 3000, NAN]}, "not JSON: NaN at $.a[1]"),
    ({"a": "x" * 3000} | {f"b{n}": 1 for n in range(20)} | {"c": NAN}, "not JSON: NaN at $.c"),
    ([NAN, "x" * 3000], "not JSON: NaN at $[0]"),
    (Rude(), "not JSON: Rude at $"),
]


@pytest.mark.parametrize(("value", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_json_can_not_hold_is_refused_by_its_path(value: Any, message: str) -> None:
    with pytest.raises(ResultError) as caught:
        encode_strictly(value)
    assert str(caught.value) == message


@pytest.mark.parametrize("value", [value for value, _ in REFUSED], ids=[message for _, message in REFUSED])
def test_a_dead_letter_is_written_whatever_is_in_it(value: Any) -> None:
    line = encode_leniently(value)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    json.loads(line)


def test_a_dead_letter_shows_what_it_can_not_hold_and_keeps_the_rest() -> None:
    letter = {"a": {"b": {1}, 2: [BIG, NAN]}, "c": "x\ud800", "d": Rude(), "e": {"f": 1}}
    assert json.loads(encode_leniently(letter)) == {
        "a": {"b": "{1}", "2": [BIG, "nan"]},
        "c": "x\\ud800",
        "d": "<Rude that can't be shown>",
        "e": {"f": 1},
    }


def test_what_is_shown_is_cut() -> None:
    shown = json.loads(encode_leniently({"a": {"é" * 5000}}))["a"]
    assert shown.startswith("{'é")
    assert 2046 <= len(shown.encode()) <= 2048


def test_an_error_in_the_values_own_code_is_a_refusal() -> None:
    class Broken(dict[str, Any]):
        def items(self) -> Any:
            raise OSError("gone")

    with pytest.raises(ResultError, match=r"^not JSON: OSError: gone$"):
        encode_strictly({"a": Broken(x=1), "b": {1}})
    assert orjson.loads(encode_leniently({"a": Broken(x=1), "b": {1}}))["b"] == "{1}"


def test_the_deepest_record_that_is_read_can_be_written() -> None:
    assert encode_strictly({"a": deep(199), "b": BIG})
    assert encode_strictly({"a": deep(253), "b": BIG})


def test_what_holds_itself_more_than_once_is_kept_once() -> None:
    """Copied along each of its ways to the deepest level allowed, it would take longer than the world has stood."""
    record: dict[str, Any] = {"children": []}
    record["children"] += [{"n": n, "parent": record} for n in range(3)]
    kept = json.loads(encode_leniently(record))
    assert [child["n"] for child in kept["children"]] == [0, 1, 2]
    assert all(isinstance(child["parent"], str) for child in kept["children"])
