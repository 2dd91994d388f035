"""Whole lines cut out of blocks: whoever cuts them anywhere, and decodes the pieces, has the entries of the text."""

from __future__ import annotations

from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from stageflow.adapters.jsonl.lines import LineParser
from stageflow.adapters.jsonl.parts import Looker, Part, PartCutter, entries_of, first_records, smaller
from stageflow.item import BadRecord
from stageflow.protocols import Entry

LINES = st.sampled_from(
    [
        b'{"id": 1}',
        b'{"id": 1}\r',
        b"",
        b" \t",
        b"\x0b",
        b"{bad",
        b"[1]",
        b'{"a": 1, "a": 2}',
        b'{"id": "' + b"x" * 40 + b'"}',
    ]
)
TEXTS = st.builds(
    lambda bom, lines, last: bom + b"\n".join(lines) + last,
    st.sampled_from([b"", b"", b"\xef\xbb\xbf"]),
    st.lists(LINES, max_size=30).filter(lambda lines: not lines or not lines[0].startswith(b"[")),
    st.sampled_from([b"", b"\n"]),
)
CUTS = st.lists(st.integers(1, 50), min_size=1, max_size=40)


def plain(entry: Entry) -> tuple[int, object]:
    index, record = entry
    return index, (str(record.error), record.raw) if isinstance(record, BadRecord) else record


def whole(text: bytes, limit: int = 1 << 26) -> tuple[list[object], list[int]]:
    parser = LineParser("in.jsonl", limit)
    parser.blanks = blanks = []
    entries = [*(parser.feed(text) or ()), *(parser.finish() or ()), *parser.release()]
    return [plain(entry) for entry in entries], blanks


def cut(text: bytes, sizes: list[int], limit: int = 1 << 26) -> list[Part | Entry]:
    cutter = PartCutter("in.jsonl", 0, limit)
    found: list[Part | Entry] = []
    ends = [end for end in accumulate(sizes) if end < len(text)]
    for start, end in zip([0, *ends], [*ends, len(text)], strict=True):
        found += cutter.feed(text[start:end])
    return [*found, *cutter.finish()]


@given(TEXTS, CUTS, st.integers(1, 60))
def test_cut_anywhere_and_decoded_in_pieces_it_is_the_same(text: bytes, sizes: list[int], piece: int) -> None:
    entries: list[object] = []
    blanks: list[int] = []
    lines = 0
    for part in cut(text, sizes):
        assert isinstance(part, Part)
        for each in smaller(part, lambda: piece):
            assert each.first == lines
            lines += each.lines
            entries += map(plain, entries_of(each.data, each.first, path="in.jsonl", strict=False, blank=blanks))
    assert (entries, blanks) == whole(text)
    assert lines == len(text.split(b"\n")) - (text.endswith(b"\n") or not text)


@given(TEXTS, CUTS)
def test_a_line_that_is_too_long_is_one_entry_in_its_place(text: bytes, sizes: list[int]) -> None:
    entries: list[object] = []
    for part in cut(text, sizes, limit=20):
        if isinstance(part, Part):
            parser = LineParser("in.jsonl", 20, first_index=part.first)
            entries += map(plain, [*(parser.feed(part.data) or ()), *(parser.finish() or ()), *parser.release()])
        else:
            entries.append(plain(part))
    assert sorted(entries, key=lambda entry: entry[0]) == whole(text, limit=20)[0]  # type: ignore[index]


@given(TEXTS, st.integers(1, 40))
def test_the_first_records_are_those_of_the_first_lines(text: bytes, most: int) -> None:
    first, records = first_records(Part(0, len(text.splitlines()), text), most)
    assert whole(first.data)[0] == whole(text)[0][:most]
    assert records == len(whole(first.data)[0])
    assert text.startswith(first.data)


def test_a_key_that_comes_twice_is_told_once_wherever_the_parts_end() -> None:
    twice, once = b'{"a": 1, "a": 2}\n', b'{"a": 1}\n'
    for before, told in ((0, True), (700, True), (999, True), (1500, False)):
        found: list[str] = []
        looker = Looker("in.jsonl", found.append)
        for part in cut(once * before + twice * 900, [600] * 60):
            assert isinstance(part, Part)
            looker.look(part)
        assert bool(found) == told, before
        assert len(found) <= 1
        if told:
            assert found[0].startswith(f"in.jsonl:{before + 1}: duplicate key")
