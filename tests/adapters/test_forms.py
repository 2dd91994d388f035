"""What finished lines are made into: each form holds them all, and the lossless ones give them back."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator

import pytest

from stageflow.adapters.forms import form_of
from stageflow.protocols import Form

LINES = [
    json.dumps({"n": n, "text": f"line {n}\n", "nested": {"list": [n, None]}}).encode() + b"\n" for n in range(9000)
]


def made(form: Form | None, lines: list[bytes]) -> bytes:
    assert form is not None
    written: list[bytes] = []

    def begin() -> Iterator[bytes]:
        return iter(lines)

    assert form.make(begin, written.append) == []
    return b"".join(written)


@pytest.mark.parametrize("name", ["out.jsonl.gz", "OUT.GZ", "out.zst", "out.zstd"])
@pytest.mark.parametrize("lines", [[], LINES[:1], LINES])
def test_compressed_lines_come_back_byte_for_byte(name: str, lines: list[bytes]) -> None:
    if "gz" not in name.lower():
        pytest.importorskip("backports.zstd")
    form = form_of(name)
    assert form is not None
    assert form.lossless
    data = made(form, lines)
    if "gz" in name.lower():
        assert gzip.decompress(data) == b"".join(lines)
    file, back = io.BytesIO(data), io.BytesIO()
    form.lines_of(file.read, back.write)
    assert back.getvalue() == b"".join(lines)
    assert made(form, lines) == data


@pytest.mark.parametrize("name", ["out.jsonl", "out", "-", "out.json", "out.csv.bak"])
def test_other_names_are_json_lines(name: str) -> None:
    assert form_of(name) is None


def table(name: str, *records: object) -> list[list[str]]:
    data = made(form_of(name), [json.dumps(record).encode() + b"\n" for record in records])
    return list(
        csv.reader(io.StringIO(data.decode(), newline=""), delimiter="\t" if name.lower().endswith("tsv") else ",")
    )


@pytest.mark.parametrize("name", ["out.csv", "out.TSV"])
def test_a_table_has_the_fields_of_all_records(name: str) -> None:
    records = (
        {"id": 1, "text": 'a,"b"\n\tc'},
        {"id": 2.5, "list": [1, "é", None]},
        {"text": None, "flag": True, "id": ""},
    )
    assert table(name, *records) == [
        ["id", "text", "list", "flag"],
        ["1", 'a,"b"\n\tc', "", ""],
        ["2.5", "", '[1,"é",null]', ""],
        ["", "", "", "true"],
    ]


def test_integers_of_any_size_stay_exact() -> None:
    assert table("out.csv", {"n": 2**70, "deep": [2**70]}) == [["n", "deep"], [str(2**70), f"[{2**70}]"]]


def test_no_records_make_an_empty_table() -> None:
    assert table("out.csv") == []


def test_a_table_can_not_give_its_lines_back() -> None:
    form = form_of("out.csv")
    assert form is not None
    assert not form.lossless
    with pytest.raises(AssertionError):
        form.lines_of(io.BytesIO().read, io.BytesIO().write)
