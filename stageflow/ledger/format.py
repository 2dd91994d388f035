"""The lines of a ledger: made, chained and taken apart. No files.

A line is the CRC-32 of its JSON as eight hex digits, a space, the JSON, and LF. Every object names its type in ``t``
and the CRC of the line before in ``p`` (0 in the first), so a line that is damaged, missing or left over from earlier
breaks the chain at its place. The types::

    h  an epoch begins       v run epoch at pid host dead opts{order} input{...} job{...}
    i  a mark in the input   n lines, b bytes, sha (a chain, see InputMark), w blank lines since the mark before
    c  a commit              o [start, end, crc] of its results, x of its dead letters, k ordinals, and only where it
                             differs from the ordinary: m {ordinal: lines}, d {ordinal: letters}, q numbers of the dead
                             letters it settles, u ordinals whose earlier lines it takes the place of, y {ordinal: the
                             places of its lines among the record's children}
    s  a sync marker         everything up to o and x, and this far in the ledger, was made durable before this line;
                             n [written, dropped, dead], at, rss (peak memory in bytes), clean: the run ended here, in
                             good order
    b  money was spent       k what is known, u what calls may have cost beyond that: both of all epochs, as text
    r  a retry begins        n numbers of the dead letters to be done again, as [first, last] ranges
    e  an operator's event   text
    f  the run is complete   o and x as they are, z and y the sizes of both files when they are finished, rewritten:
                             the results are copied in the order of the input, ended: the input's end was reached
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any
from zlib import crc32

import orjson

__all__ = [
    "HEADER_BYTES",
    "SEAL_BYTES",
    "VERSION",
    "Fields",
    "begins_as_header",
    "merge_ranges",
    "parse",
    "ranges_of",
    "seal",
    "seal_of",
    "stands_alone",
]

VERSION = 1
"""Of the format. A newer one is refused."""

Fields = dict[str, Any]

_HEX_DIGITS = 8
_HEADER = b' {"t":"h"'
SEAL_BYTES = _HEX_DIGITS + 1
"""Of a line, before its JSON."""

HEADER_BYTES = 1 << 16
"""Of a line, or of what may be one: that it is a header is seen within so many."""


def seal(fields: Fields, previous: int) -> tuple[bytes, int]:
    """A line and its CRC, which the next line has as ``previous``. The fields get their ``p``."""
    fields["p"] = previous
    body = orjson.dumps(fields, option=orjson.OPT_NON_STR_KEYS)
    crc = crc32(body)
    return b"%08x %s\n" % (crc, body), crc


def seal_of(line: bytes) -> int:
    """The CRC that a line which was parsed bears."""
    return int(line[:_HEX_DIGITS], 16)


def parse(line: bytes, previous: int) -> Fields | None:
    """The object of a line without its LF; ``None`` where it is damaged or does not follow the line before."""
    fields = stands_alone(line)
    return fields if fields is not None and fields.get("p") == previous else None


def stands_alone(line: bytes) -> Fields | None:
    """The object of a line that is whole by its own CRC, wherever it came from; else ``None``."""
    body = line[SEAL_BYTES:]
    if line[:SEAL_BYTES] != b"%08x " % crc32(body):
        return None
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return fields if isinstance(fields, dict) else None


def begins_as_header(head: bytes) -> bool:
    """Whether the beginning of a file is that of a header, as far as it goes."""
    crc, start = head[:_HEX_DIGITS], head[_HEX_DIGITS:]
    return not crc.strip(b"0123456789abcdef") and start[: len(_HEADER)] == _HEADER[: len(start)]


def ranges_of(numbers: Iterable[int]) -> list[list[int]]:
    """Ascending numbers as ``[first, last]`` ranges."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ranges


def merge_ranges(ranges: Iterable[Iterable[int]]) -> Iterator[int]:
    """The numbers of :func:`ranges_of`."""
    for first, last in ranges:
        yield from range(first, last + 1)
