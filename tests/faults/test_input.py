"""What is wrong with an input, and exactly what a run makes of it.

Faults 36 to 53, by the numbers in the names of the tests, through ``stageflow run``. The stage gives
back what it gets, so an output line says what was read.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import random
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from accounts import ROOT

from stageflow.cli import invoke

JOB = """
from stageflow import Pipeline

pipeline = Pipeline("job")

@pipeline.stage
async def same(n=None):
    return n
"""

MIB = 1024 * 1024


@dataclass
class Outcome:
    """What a run exited with, said and left behind."""

    code: int
    err: str
    summary: dict[str, Any]
    written: list[dict[str, Any]]
    dead: list[dict[str, Any]]

    @property
    def read(self) -> list[Any]:
        """The field ``n`` of the records, as the stage got it."""
        return [record["same"] for record in self.written]

    def errors(self) -> dict[int, str]:
        """The messages of the dead letters by line."""
        found = {letter["line"]: letter["error"]["message"] for letter in self.dead}
        assert len(found) == len(self.dead)
        return found

    def account(self) -> tuple[int, ...]:
        """``read, written, dead, not_done, blank``"""
        return tuple(self.summary[name] for name in ("read", "written", "dead", "not_done", "blank"))


Run = Callable[..., Outcome]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the job on these bytes, or on what is there (``None``), in this process."""
    monkeypatch.chdir(tmp_path)
    Path("job.py").write_text(JOB)

    def once(data: bytes | None, *options: str, name: str = "queries.jsonl") -> Outcome:
        if data is not None:
            Path(name).write_bytes(data)
        capsys.readouterr()
        code = invoke(["run", "job.py", name, "-o", "out.jsonl", "--summary", "json", "--progress", "off", *options])
        out, err = capsys.readouterr()
        summary = json.loads(out) if out else {}
        partial = [name for name in ("out.jsonl", "out.jsonl.partial") if os.path.exists(name)]
        return Outcome(
            code, err, summary, lines(partial[0]) if partial else [], lines("out.jsonl.dead.jsonl", missing_ok=True)
        )

    return once


def lines(name: str, *, missing_ok: bool = False) -> list[dict[str, Any]]:
    if missing_ok and not os.path.exists(name):
        return []
    return [json.loads(line) for line in Path(name).read_bytes().splitlines()]


def refused(outcome: Outcome, error: str, hint: str | None = None) -> None:
    """The run was refused before anything was made, with these words."""
    told = outcome.err.splitlines()
    assert (outcome.code, told[0]) == (2, f"stageflow: error: {error}")
    assert hint is None or told[1:] == [f"  hint: {hint}"]
    assert [name for name in os.listdir() if name.startswith("out.jsonl")] == []


def good(n: int) -> bytes:
    return b'{"n":%d}\n' % n


def many(count: int, seed: int = 0) -> bytes:
    """Records that hardly compress."""
    draw = random.Random(seed)
    return b"".join(b'{"n":%d,"noise":"%s"}\n' % (n, draw.randbytes(30).hex().encode()) for n in range(count))


# 36 to 46: lines


def test_row_36_a_line_that_is_no_json_is_a_dead_letter_with_its_place_and_text(run: Run) -> None:
    ended = run(good(0) + b'{"n":1 "query":2}\n' + good(2))
    assert (ended.code, ended.read, ended.account()) == (3, [0, 2], (3, 2, 1, 0, 0))
    (letter,) = ended.dead
    assert letter["error"] | {"trace": ""} == {
        "type": "RecordError",
        "message": "InvalidJSON: expected ',' or '}' at column 8",
        "trace": "",
    }
    assert (letter["index"], letter["line"], letter["path"]) == (1, 2, "queries.jsonl")
    assert letter["record"] == '{"n":1 "query":2}'
    assert (letter["attempts"], letter["retryable"]) == (0, False)


def test_row_36_on_bad_input_stop_stops_there_and_can_be_continued(run: Run) -> None:
    ended = run(good(0) + b"broken\n" + good(2), "--on-bad-input", "stop")
    assert (ended.code, ended.dead) == (4, [])
    assert "queries.jsonl:2: InvalidJSON: expected a JSON value at column 1" in ended.err
    ended = run(None)
    assert (ended.code, ended.read, list(ended.errors())) == (3, [0, 2], [2])


@pytest.mark.parametrize(("bad", "all_"), [(6, 10), (51, 100), (100, 100), (300, 500), (11, 21)])
def test_row_36_a_file_of_mostly_bad_lines_is_the_wrong_file(run: Run, bad: int, all_: int) -> None:
    ended = run(b"a,b,c\n" * bad + b"\n" * 20 + b"{}\n" * (all_ - bad))
    looked_at = min(all_, 100)
    refused(
        ended,
        f"queries.jsonl is not JSON lines: {min(bad, 100)} of its first {looked_at} lines hold no record; "
        "line 1: InvalidJSON: expected a JSON value at column 1",
        "is it the right file?",
    )


@pytest.mark.parametrize(("bad", "all_"), [(1, 1), (1, 2), (9, 9), (5, 10), (50, 100), (50, 99_0)])
def test_row_36_a_file_of_few_lines_or_of_half_good_ones_is_run(run: Run, bad: int, all_: int) -> None:
    ended = run(b"{}\n" * (all_ - bad) + b"broken\n" * bad)
    assert (ended.code, ended.account()) == (3, (all_, all_ - bad, bad, 0, 0))


PEAK = """
import os, sys
pid = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-m", "stageflow", *sys.argv[1:]])
_, status, usage = os.wait4(pid, 0)
print(usage.ru_maxrss // 1024, os.waitstatus_to_exitcode(status))
"""


def python(folder: Path, *arguments: str, **given: Any) -> subprocess.CompletedProcess[Any]:
    """Run Python in a process of its own, and wait for its end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, timeout=100, **given
    )


def peak_of(folder: Path, name: str, *options: str, out: str = "out.jsonl") -> tuple[int, int]:
    """The most memory that a run took, in MiB, and its exit code."""
    command = ["run", "job.py", name, "-o", out, "--progress", "off", *options]
    told = python(folder, "-c", PEAK, *command, check=True, text=True)
    peak, code = told.stdout.split()[-2:]
    return int(peak), int(code)


def test_row_37_a_line_of_a_hundred_mebibyte_is_skipped_as_it_is_read(run: Run, tmp_path: Path) -> None:
    (tmp_path / "small.jsonl").write_bytes(good(0) + good(2))
    usual, code = peak_of(tmp_path, "small.jsonl", out="small.out")
    assert code == 0
    with open("queries.jsonl", "wb") as file:
        file.write(good(0) + b'{"n":"')
        for _ in range(100):
            file.write(b"x" * MIB)
        file.seek(-8, os.SEEK_CUR)
        file.write(b'"}\n' + good(2))
    ended = run(None)
    assert (ended.code, ended.read) == (3, [0, 2])
    assert ended.errors() == {2: "RecordTooLarge: 100.0 MiB > 64 MiB"}
    assert len(ended.dead[0]["record"]) == 64 * 1024
    peak, code = peak_of(tmp_path, "queries.jsonl", out="other.jsonl")
    # A line is held up to the limit, until it is known to be longer.
    assert (code, peak < usual + 80) == (3, True), (peak, usual)


@pytest.mark.parametrize(
    ("text", "at"), [(b"\xff", 7), (b"\xc0\xaf", 7), (b"\xed\xa0\x80", 7), (b"ok\xf5", 9), (b"\\ud800", 7)]
)
def test_row_38_what_is_no_utf8_is_kept_to_the_byte(run: Run, text: bytes, at: int) -> None:
    line = b'{"n":"' + text + b'"}'
    ended = run(good(0) + line + b"\n" + good(2))
    assert (ended.code, ended.read, ended.errors()) == (3, [0, 2], {2: f"InvalidEncoding at byte {at}"})
    kept = ended.dead[0]
    assert line == (base64.b64decode(kept["raw_b64"]) if "raw_b64" in kept else kept["record"].encode())
    assert ("raw_b64" in kept) == (text != b"\\ud800")


def test_row_39_nul_bytes_condemn_their_line(run: Run) -> None:
    ended = run(good(0) + b'{"n":"a\0b"}\n' + b"\0\0\0\n" + good(3))
    assert (ended.code, ended.read) == (3, [0, 3])
    assert ended.errors() == {2: "InvalidJSON: NUL byte at column 8", 3: "InvalidJSON: NUL byte at column 1"}


@pytest.mark.parametrize("torn", [b"", b'{"n":1,"te'])
def test_row_39_a_tail_of_nul_bytes_is_one_bad_line(run: Run, torn: bytes) -> None:
    """What a crashed machine leaves at the end of the file that another program was writing."""
    ended = run(good(0) + torn + b"\0" * MIB)
    assert (ended.code, ended.read, ended.account()) == (3, [0], (2, 1, 1, 0, 0))
    assert ended.errors() == {2: f"InvalidJSON: NUL byte at column {len(torn) + 1}"}
    assert len(ended.dead[0]["record"]) == 64 * 1024


def test_row_40_a_byte_order_mark_is_dropped_at_the_start_and_nowhere_else(run: Run) -> None:
    ended = run(b"\xef\xbb\xbf" + good(0) + b"\xef\xbb\xbf" + good(1) + good(2))
    assert (ended.code, ended.read) == (3, [0, 2])
    assert ended.errors() == {2: "InvalidJSON: byte order mark at column 1"}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_row_40_utf16_is_refused(run: Run, encoding: str) -> None:
    ended = run('{"n":0}\n{"n":1}\n'.encode(encoding))
    refused(ended, "input looks like UTF-16", "convert it first: iconv -f UTF-16 -t UTF-8 queries.jsonl")


def test_row_41_only_lf_ends_a_line(run: Run) -> None:
    ended = run('{"n":\r0}\r\n{"n":"a\u2028b\u0085c"}\r\n{"n":2}\r\n'.encode())
    assert (ended.code, ended.read) == (0, [0, "a\u2028b\u0085c", 2])


TWICE = b'{"n":1,"m":{"a":1,"a":2},"n":[2]}\n'


def test_row_42_of_a_key_that_comes_twice_the_last_value_counts_with_one_warning(run: Run) -> None:
    ended = run(good(0) + TWICE + TWICE)
    assert (ended.code, ended.read) == (0, [0, [2], [2]])
    said = [line for line in ended.err.splitlines() if "duplicate" in line]
    assert len(said) == 1
    assert said[0].startswith("stageflow: warning: queries.jsonl:2: duplicate key ")


def test_row_42_strict_makes_it_a_dead_letter_wherever_it_stands(run: Run) -> None:
    # Behind the first block: there a key that comes twice is looked for because of --strict alone.
    before = b"".join(good(n).rstrip() + b" " * 100 + b"\n" for n in range(3000))
    ended = run(before + TWICE + TWICE.replace(b'"n"', b'"k"'), "--strict")
    assert (ended.code, ended.account()) == (3, (3002, 3000, 2, 0, 0))
    assert ended.errors() == {3001: 'duplicate key "a"', 3002: 'duplicate key "a"'}
    assert "warning" not in ended.err


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (b"NaN", "NaN is not JSON"),
        (b"Infinity", "Infinity is not JSON"),
        (b"-Infinity", "-Infinity is not JSON"),
        (b"1e999", "1e999 is not JSON"),
    ],
)
def test_row_43_what_json_has_no_number_for_is_refused(run: Run, number: bytes, message: str) -> None:
    ended = run(good(0) + b'{"n":' + number + b"}\n")
    assert (ended.code, ended.errors()) == (3, {2: message})


def test_row_44_integers_come_out_as_they_went_in(run: Run) -> None:
    numbers = [2**63, 2**64 - 1, 2**64, -(2**63) - 1, 123456789012345678901234567890, 10**307 + 3]
    ended = run(b"".join(map(good, numbers)) + b'{"n":' + b"7" * 400 + b"}\n")
    assert (ended.code, ended.errors()) == (3, {7: "integer too large"})
    assert (ended.read, [type(number) for number in ended.read]) == (numbers, [int] * 6)


@pytest.mark.parametrize("depth", [201, 1000, 100_000])
def test_row_45_what_is_nested_too_deeply_is_refused_and_the_rest_is_written(run: Run, depth: int) -> None:
    def nested(levels: int) -> bytes:
        return b'{"m":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b',"n":1}\n'

    hidden = b'{"n":' + b"[" * depth + b"]" * depth + b',"n":2}\n' if depth < 1024 else b""
    ended = run(good(0) + nested(200) + nested(depth) + hidden)
    assert (ended.code, ended.errors()) == (3, {3: "nesting deeper than 200"})
    assert ended.read == ([0, 1, 2] if hidden else [0, 1])
    assert "Traceback" not in ended.err


def test_row_46_blank_lines_are_skipped_and_counted_and_keep_their_numbers(run: Run) -> None:
    ended = run(b"\n  \t\n" + good(2) + b"\r\n" + b'{"n":4}  \t \nbroken\n\n')
    assert (ended.code, ended.read, ended.account()) == (3, [2, 4], (3, 2, 1, 0, 4))
    assert list(ended.errors()) == [6]
    again = run(None)
    assert (again.code, again.summary["already_complete"]) == (3, True)


# 47 to 49: files


def test_row_47_the_last_line_needs_no_line_end(run: Run) -> None:
    ended = run(good(0) + b'{"n":1}')
    assert (ended.code, ended.read) == (0, [0, 1])
    # It is ended later, and goes on: the same line, not another one.
    with open("queries.jsonl", "ab") as file:
        file.write(b"\n" + good(2))
    ended = run(None)
    assert (ended.code, ended.read, ended.account()[:2]) == (0, [0, 1, 2], (3, 3))


def test_row_47_a_file_that_grows_while_it_is_read_is_told_of(run: Run) -> None:
    grows = """
    if n == 0:
        with open("queries.jsonl", "a") as file:
            file.write('\\n{"n":2}\\n')
    return n
"""
    Path("job.py").write_text(JOB.replace("\n    return n\n", grows))
    ended = run(good(0) + b'{"n":1}')
    assert ended.code == 3
    assert "stageflow: warning: queries.jsonl was changed while it was read\n" in ended.err
    assert ended.read[:2] == [0, 1]
    ended = run(None)
    assert (ended.code, ended.read) == (0, [0, 1, 2])


def test_row_48_an_empty_file_is_noted(run: Run) -> None:
    ended = run(b"")
    assert (ended.code, ended.written, ended.account()) == (0, [], (0, 0, 0, 0, 0))
    assert "stageflow: note: the input is empty\n" in ended.err
    assert Path("out.jsonl").read_bytes() == b""


@pytest.mark.parametrize("value", [b"[1,2]", b"17", b'"text"', b"null", b"true"])
def test_row_49_a_line_that_holds_no_object_is_a_dead_letter(run: Run, value: bytes) -> None:
    ended = run(good(0) + value + b"\n")
    assert (ended.code, ended.read, ended.errors()) == (3, [0], {2: "record must be an object"})


@pytest.mark.parametrize("data", [b'[{"n":0},{"n":1}]', b'[\n{"n":0},\n{"n":1}\n]\n', b"[]\n"])
def test_row_49_a_file_that_is_one_array_is_refused_with_the_way_to_convert_it(run: Run, data: bytes) -> None:
    hint = "put each of its elements on a line of its own: jq -c '.[]' queries.jsonl"
    refused(run(data), "input is one JSON array, not JSON lines", hint)


def test_row_49_an_array_longer_than_any_line_may_be_is_refused_too(run: Run) -> None:
    with open("queries.jsonl", "wb") as file:
        file.write(b"[")
        for _ in range(66):
            file.write(b'{"n":1},' * (MIB // 8))
        file.write(b"{}]\n")
    refused(run(None), "input is one JSON array, not JSON lines")


# 50 and 51: gzip

GZ = "queries.jsonl.gz"


def test_row_50_of_a_cut_off_gzip_file_all_whole_lines_are_processed(run: Run) -> None:
    text = many(2000)
    whole = gzip.compress(text)
    for cut in (len(whole) - 4, len(whole) // 2, 200):
        ended = run(whole[:cut], "--fresh", name=GZ)
        assert ended.code == 3
        assert f"stageflow: error: {GZ} ends early (unexpected end of gzip data)" in ended.err
        assert ended.dead == []
        assert ended.read == list(range(len(ended.read)))
        assert os.path.exists("out.jsonl.partial")
        had = len(ended.read)
        assert had >= 2000 * cut // len(whole) - 20, "it stopped before the last whole line"
        # The rest comes, and the run goes on where it ended.
        ended = run(whole, name=GZ)
        assert (ended.code, ended.read) == (0, list(range(2000)))
        assert ended.summary["earlier"] == had


def test_row_50_a_gzip_file_whose_checksum_is_wrong_is_damaged(run: Run) -> None:
    whole = bytearray(gzip.compress(many(50_000)))
    whole[-6] ^= 1
    ended = run(bytes(whole), name=GZ)
    assert ended.code == 3
    assert f"stageflow: error: {GZ} is damaged (its checksum does not match)" in ended.err
    assert len(ended.read) > 40_000
    assert ended.dead == []


def test_row_50_a_gzip_file_that_is_damaged_in_the_middle_is_read_up_to_there(run: Run) -> None:
    whole = bytearray(gzip.compress(many(50_000)))
    middle = len(whole) // 2
    whole[middle : middle + 20_000] = random.Random(1).randbytes(20_000)
    ended = run(bytes(whole), name=GZ)
    assert ended.code == 3
    assert f"stageflow: error: {GZ} is damaged (" in ended.err
    assert ended.read[:20_000] == list(range(20_000))


@pytest.mark.parametrize("data", [good(0) * 20, b"", b"\x1f"])
def test_row_51_what_is_only_named_gz_is_refused(run: Run, data: bytes) -> None:
    refused(run(data, name=GZ), f"{GZ} is not gzip")


def test_row_51_what_is_gzip_by_another_name_is_read_and_so_are_several_members(run: Run) -> None:
    ended = run(gzip.compress(good(0) + b'{"n":') + gzip.compress(b"1}\n") + b"\0" * 600 + gzip.compress(good(2)))
    assert (ended.code, ended.read, ended.err) == (0, [0, 1, 2], "")


def test_row_51_what_follows_gzip_data_is_warned_of(run: Run) -> None:
    ended = run(gzip.compress(good(0) + good(1)) + b"garbage", name=GZ)
    assert (ended.code, ended.read) == (0, [0, 1])
    assert f"stageflow: warning: {GZ}: what follows the gzip data is no gzip, and was ignored\n" in ended.err


def bomb(mebibytes: int, *, lines: bool) -> bytes:
    """Gzip of so much blank space, or of one line; a thousandth of its size."""
    block = b'{"n":1}\n' * (MIB // 8) if lines else b" " * MIB
    squeeze = zlib.compressobj(9, wbits=31)
    return b"".join([*(squeeze.compress(block) for _ in range(mebibytes)), squeeze.flush()])


def test_row_51_a_bomb_takes_time_but_no_memory(run: Run, tmp_path: Path) -> None:
    (tmp_path / "small.jsonl").write_bytes(good(0))
    (tmp_path / GZ).write_bytes(bomb(400, lines=False))
    usual, _ = peak_of(tmp_path, "small.jsonl", out="small.out")
    peak, code = peak_of(tmp_path, GZ)
    assert (code, peak < usual + 200) == (3, True), (peak, usual)


def test_row_51_max_input_bytes_stops_a_bomb(run: Run) -> None:
    ended = run(bomb(64, lines=True), "--max-input-bytes", "1000", name=GZ)
    assert (ended.code, ended.read) == (4, [1] * 125)
    assert "the input is larger than --max-input-bytes 1000" in ended.err
    ended = run(None, "--max-input-bytes", "2003", name=GZ)
    assert (ended.code, ended.read) == (4, [1] * 250)


def test_row_51_an_input_of_exactly_that_size_is_read(run: Run) -> None:
    ended = run(good(0) * 10, "--max-input-bytes", "80")
    assert (ended.code, ended.account()) == (0, (10, 10, 0, 0, 0))


# 52 and 53: what to read


def test_row_52_what_can_not_be_opened_is_refused_and_nothing_is_made(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(run(None), "cannot read queries.jsonl: No such file or directory")
    os.mkdir("folder")
    refused(run(None, name="folder"), "cannot read folder: Is a directory")
    Path("secret").write_bytes(good(0))
    monkeypatch.setattr(os, "access", lambda path, mode: path != "secret")
    refused(run(None, name="secret"), "cannot read secret: Permission denied")


def test_row_53_standard_input_is_read_and_can_not_be_resumed(run: Run, tmp_path: Path) -> None:
    for out, note in (("out.jsonl", "stageflow: note: stdin cannot be resumed\n"), ("-", "")):
        command = ["run", "job.py", "-", "-o", out, "--progress", "off"]
        told = python(tmp_path, "-m", "stageflow", *command, input='{"n":0}\n{"n":1}', text=True, check=True)
        assert note in told.stderr
        written = told.stdout if out == "-" else Path(out).read_text()
        assert [json.loads(line)["same"] for line in written.splitlines()] == [0, 1]


def test_row_53_compressed_standard_input_is_refused(run: Run, tmp_path: Path) -> None:
    command = ["-m", "stageflow", "run", "job.py", "-", "-o", "-"]
    told = python(tmp_path, *command, input=gzip.compress(good(0)), check=False)
    assert (told.returncode, told.stdout) == (2, b"")
    assert b"stageflow: error: input looks like gzip\n" in told.stderr
