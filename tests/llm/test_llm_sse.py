"""Server-sent events: what a stream says does not depend on how it is cut into pieces."""

from __future__ import annotations

import random
import time

import pytest

from stageflow.llm.sse import EventReader

STREAM = (
    ': a comment, then an event of two lines\ndata: {"a":\ndata:1}\n\n'
    'event: error\nid: 7\nretry: 9\ndata: {"é": "日本 🎉"}\n\n'
    "data\n\nevent: left out\n\ndata:  two spaces\n\n:\n\ndata: [DONE]\n\ndata: not ended\n"
).encode()
EVENTS = [
    (b"", b'{"a":\n1}'),
    (b"error", '{"é": "日本 🎉"}'.encode()),
    (b"", b""),
    (b"", b" two spaces"),
    (b"", b"[DONE]"),
]
ENDS = {"LF": b"\n", "CR": b"\r", "CRLF": b"\r\n"}


def read(*pieces: bytes) -> list[tuple[bytes, bytes]]:
    reader = EventReader()
    return [event for piece in pieces for event in reader.feed(piece)]


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "BOM"])
def test_cut_at_every_place(end: bytes, mark: bytes) -> None:
    stream = mark + STREAM.replace(b"\n", end)
    assert read(stream) == EVENTS
    for place in range(len(stream) + 1):
        assert read(stream[:place], stream[place:]) == EVENTS, place
    for first in range(0, len(stream), 3):
        for second in range(first, len(stream), 5):
            assert read(stream[:first], stream[first:second], stream[second:]) == EVENTS, (first, second)
    assert read(*(stream[place : place + 1] for place in range(len(stream)))) == EVENTS


@pytest.mark.parametrize("seed", range(50))
def test_any_line_ends_in_any_pieces(seed: int) -> None:
    draw = random.Random(seed)
    lines = STREAM.split(b"\n")[:-1]
    # LF behind a lone CR would be one end with it.
    ends = [draw.choice([b"\r\n", b"\n", b"\r"]) for _ in lines]
    stream = b""
    for line, end in zip(lines, ends, strict=True):
        if not line and end == b"\n" and stream.endswith(b"\r"):
            end = b"\r\n"
        stream += line + end
    places = sorted(draw.randrange(len(stream)) for _ in range(draw.randrange(1, 30)))
    pieces = [stream[start:stop] for start, stop in zip([0, *places], [*places, len(stream)], strict=True)]
    assert read(*pieces) == EVENTS, f"seed {seed}"


def test_an_event_is_there_as_soon_as_its_blank_line_is() -> None:
    for end in ENDS.values():
        reader = EventReader()
        assert reader.feed(b"data: x" + end) == []
        assert reader.feed(end[:1]) == [(b"", b"x")]
        assert reader.feed(end[1:]) == []


def test_what_is_not_ended_is_no_event() -> None:
    assert read(b"data: x\n") == read(b"data: x") == read(b"\n\n\r\n:\n") == read(b"") == []


def test_a_long_line_in_many_pieces_is_copied_once() -> None:
    """A line of 64 MB in pieces of 1 KB: to copy what is there with each would be two million megabytes."""
    piece = bytes(1024).replace(b"\0", b"x")
    reader = EventReader()
    start = time.process_time()
    for part in (b"data: ", *[piece] * 65_536, b"\n"):
        assert reader.feed(part) == []
    (event,) = reader.feed(b"\n")
    assert len(event[1]) == 67_108_864
    assert time.process_time() - start < 10
