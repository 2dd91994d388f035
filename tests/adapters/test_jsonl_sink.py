"""Writing JSON lines: names, refusals, durability, order, and outputs that are no files."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import resource
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stageflow.adapters.jsonl import BrokenOutput, JsonlSink, JsonlSource
from stageflow.adapters.jsonl import files as files_module
from stageflow.errors import RequestError, StorageError


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def names() -> list[str]:
    return sorted(os.listdir())


def content(path: str) -> bytes:
    return Path(path).read_bytes()


def appear() -> None:
    Path("out.jsonl").write_bytes(b"somebody else's")


def sink(path: str = "out.jsonl", order: Any = "completion", **options: Any) -> JsonlSink:
    return JsonlSink(path, order=order, **options)


def dead(path: str = "dead.jsonl", **options: Any) -> JsonlSink:
    return JsonlSink(path, order="completion", mode=0o600, lenient=True, partial=False, **options)


async def write(sink: JsonlSink, indices: Iterable[int], batch: int = 3) -> None:
    lines = [(index, sink.encode({"i": index, "n": number})) for number, index in enumerate(indices)]
    for at in range(0, len(lines), batch):
        await sink.write(lines[at : at + batch])


def finish(sink: JsonlSink, indices: Iterable[int] = (), *, complete: bool = True) -> None:
    async def all_of_it() -> None:
        sink.open()
        await write(sink, indices)
        await sink.close(complete=complete)

    asyncio.run(all_of_it())


def indices(path: str = "out.jsonl") -> list[int]:
    async def read() -> list[int]:
        return [record["i"] async for portion in JsonlSource(path).read() for _, record in portion]

    return asyncio.run(read())


# Names


def test_a_complete_run_leaves_the_output_alone_under_its_name() -> None:
    finish(sink(), [2, 0, 1])
    assert names() == ["out.jsonl"]
    assert indices() == [2, 0, 1]


def test_an_interrupted_run_leaves_the_partial_file() -> None:
    finish(sink(order="input"), [2, 0, 1], complete=False)
    assert names() == ["out.jsonl.partial"]
    assert indices("out.jsonl.partial") == [2, 0, 1]


def test_a_complete_run_without_a_record_leaves_an_empty_file() -> None:
    finish(sink(order="input"))
    assert Path("out.jsonl").read_bytes() == b""


def test_every_batch_is_in_the_file_at_once() -> None:
    async def scenario() -> None:
        output = sink(order="input")
        output.open()
        assert names() == ["out.jsonl.partial"]
        await output.write([(5, b"five\n"), (0, b"zero\n")])
        assert content("out.jsonl.partial") == b"five\nzero\n"
        await output.write([])
        await output.close(complete=True)
        await output.close(complete=True)

    asyncio.run(scenario())
    assert Path("out.jsonl").read_bytes() == b"zero\nfive\n"


@pytest.mark.parametrize(
    ("existing", "message"),
    [
        ("out.jsonl", "out.jsonl exists"),
        ("out.jsonl.partial", "out.jsonl.partial exists, from an interrupted run"),
    ],
)
def test_what_exists_is_not_touched(existing: str, message: str) -> None:
    Path(existing).write_bytes(b"old")
    with pytest.raises(RequestError) as caught:
        sink().open()
    assert str(caught.value) == message
    assert caught.value.hint == "choose another -o, or pass --fresh to keep it under another name"
    assert names() == [existing]
    assert Path(existing).read_bytes() == b"old"


def test_fresh_renames_what_exists_and_deletes_nothing() -> None:
    for name in ("out.jsonl", "out.jsonl.1", "out.jsonl.partial"):
        Path(name).write_bytes(name.encode())
    finish(sink(fresh=True), [1])
    assert names() == ["out.jsonl", "out.jsonl.1", "out.jsonl.2", "out.jsonl.partial.1"]
    assert Path("out.jsonl.1").read_bytes() == b"out.jsonl.1"
    assert Path("out.jsonl.2").read_bytes() == b"out.jsonl"
    assert Path("out.jsonl.partial.1").read_bytes() == b"out.jsonl.partial"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing/out.jsonl", "cannot write to missing: No such file or directory"),
        ("file/out.jsonl", "cannot write to file: Not a directory"),
        ("folder", "cannot write to folder: Is a directory"),
        ("x" * 250, f"cannot write to {'x' * 250}.partial: File name too long"),
    ],
)
def test_a_place_that_can_not_be_written_to_is_refused(path: str, message: str) -> None:
    Path("file").write_bytes(b"")
    Path("folder").mkdir()
    with pytest.raises(RequestError) as caught:
        sink(path).open()
    assert str(caught.value) == message
    assert names() == ["file", "folder"]


def test_a_directory_without_permission_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(files_module.tempfile, "TemporaryFile", refuse)
    with pytest.raises(RequestError, match=r"^cannot write to \.: Permission denied$"):
        sink().open()


def test_a_symbolic_link_stays_a_link() -> None:
    Path("disk").mkdir()
    Path("out.jsonl").symlink_to("disk/real.jsonl")
    output = sink(order="input")
    finish(output, [1, 0])
    assert Path("out.jsonl").is_symlink()
    assert os.listdir("disk") == ["real.jsonl"]
    assert indices("disk/real.jsonl") == [0, 1]


@pytest.mark.parametrize(("mode", "expected"), [(0o666, 0o640), (0o600, 0o600)])
@pytest.mark.parametrize("indices", [[0, 1], [1, 0]])
def test_permissions_follow_the_umask_from_the_first_moment(mode: int, expected: int, indices: list[int]) -> None:
    old = os.umask(0o027)
    try:
        finish(sink(order="input", mode=mode), indices)
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat("out.jsonl").st_mode) == expected


@pytest.mark.parametrize("indices", [[0, 1], [1, 0]])
def test_an_output_that_appears_during_the_run_is_not_replaced(indices: list[int]) -> None:
    async def scenario() -> None:
        output = sink(order="input")
        output.open()
        await write(output, indices)
        appear()
        with pytest.raises(StorageError) as caught:
            await output.close(complete=True)
        assert str(caught.value) == "out.jsonl appeared during the run; the results are in out.jsonl.partial"

    asyncio.run(scenario())
    assert names() == ["out.jsonl", "out.jsonl.partial"]
    assert Path("out.jsonl").read_bytes() == b"somebody else's"


def test_a_partial_file_that_somebody_else_changed_is_not_published() -> None:
    async def scenario() -> None:
        output = sink(order="input")
        output.open()
        await write(output, [1, 0])
        os.truncate("out.jsonl.partial", 5)
        with pytest.raises(StorageError, match=r"^out\.jsonl\.partial was changed during the run by something else$"):
            await output.close(complete=True)

    asyncio.run(scenario())
    assert names() == ["out.jsonl.partial"]


# Dead letters


def test_dead_letters_make_their_file_with_the_first_one() -> None:
    finish(dead())
    assert names() == []
    finish(dead(), [3], complete=False)
    assert names() == ["dead.jsonl"]
    assert stat.S_IMODE(os.stat("dead.jsonl").st_mode) == 0o600
    with pytest.raises(RequestError) as caught:
        dead().open()
    assert str(caught.value) == "dead.jsonl exists"
    assert caught.value.hint == "choose another --dead, or pass --fresh to keep it under another name"
    finish(dead(fresh=True), [4])
    assert (names(), indices("dead.jsonl")) == (["dead.jsonl", "dead.jsonl.1"], [4])


def test_dead_letters_take_anything() -> None:
    assert dead().encode({"a": {1}}) == b'{"a":"{1}"}\n'


# Order


@given(
    st.lists(st.integers(0, 12), max_size=40).flatmap(st.permutations),
    st.integers(1, 7),
    st.integers(1, 8),
    st.integers(1, 5),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_finished_file_is_in_input_order(order: list[int], batch: int, window: int, block_lines: int) -> None:
    async def scenario() -> None:
        output = sink("ordered.jsonl", "input", fresh=True)
        output.open()
        assert output._index is not None
        output._index._window, output._index._block_lines = window, block_lines
        await write(output, order, batch)
        await output.close(complete=True)

    try:
        asyncio.run(scenario())
        lines = Path("ordered.jsonl").read_bytes().splitlines()
        expected = sorted((index, number) for number, index in enumerate(order))
        assert lines == [b'{"i":%d,"n":%d}' % pair for pair in expected]
    finally:
        for name in names():
            os.unlink(name)


def test_lines_longer_than_a_copy_are_sorted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "_COPY_BYTES", 10)
    lines = [(3, b"3" * 25 + b"\n"), (1, b"1\n"), (2, b"2" * 40 + b"\n"), (3, b"4\n"), (0, b"0" * 9 + b"\n")]

    async def scenario() -> None:
        output = sink(order="input")
        output.open()
        await output.write(lines)
        await output.close(complete=True)

    asyncio.run(scenario())
    assert Path("out.jsonl").read_bytes() == b"".join(lines[at][1] for at in (4, 1, 2, 0, 3))


def test_the_sort_runs_beside_the_loop_and_a_cancellation_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sorting, go_on = threading.Event(), threading.Event()
    real = files_module._pieces

    def slow(spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        assert threading.current_thread() is not threading.main_thread()
        sorting.set()
        go_on.wait(10)
        yield from real(spans)

    async def scenario() -> None:
        output = sink(order="input")
        output.open()
        await write(output, [1, 0])
        closing = asyncio.ensure_future(output.close(complete=True))
        await asyncio.to_thread(sorting.wait, 10)
        closing.cancel()
        asyncio.get_running_loop().call_later(0, go_on.set)
        await asyncio.wait([closing])
        assert closing.cancelled()

    monkeypatch.setattr(files_module, "_pieces", slow)
    asyncio.run(scenario())
    assert (names(), indices("out.jsonl.partial")) == (["out.jsonl.partial"], [1, 0])


# Storage that fails


@contextmanager
def small_files() -> Iterator[None]:
    """No file of this process grows over 1,000 bytes; pytest's own report may be one, so for a moment only."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_is_undone() -> None:
    async def scenario() -> None:
        output = sink()
        output.open()
        await output.write([(0, b"x" * 899 + b"\n")])
        with small_files(), pytest.raises(StorageError) as caught:
            await output.write([(1, b"y" * 500 + b"\n")])
        assert str(caught.value) == "cannot write out.jsonl.partial: File too large"
        await output.close(complete=False)

    asyncio.run(scenario())
    assert Path("out.jsonl.partial").read_bytes() == b"x" * 899 + b"\n"


def test_short_writes_are_invisible(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data[:1])))
        finish(sink(order="input"), [3, 1, 2])
    assert indices() == [1, 2, 3]


def test_a_failing_fsync_publishes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(StorageError, match=r"^cannot write out\.jsonl\.partial: Input/output error$"):
            finish(sink(), [1])
    assert names() == ["out.jsonl.partial"]


def test_the_file_and_its_directory_are_synced_around_the_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def note_fsync(descriptor: int) -> None:
        done.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def note_rename(source: str, target: str) -> None:
        done.append("rename")
        rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", note_fsync)
        patched.setattr(os, "rename", note_rename)
        finish(sink(order="input"), [0, 1])
        assert done == ["file", "rename", "directory"]
        done.clear()
        finish(sink("other.jsonl", "input"), [1, 0])
    assert done == ["file", "file", "rename", "directory"]


def test_no_space_on_a_device() -> None:
    with pytest.raises(StorageError, match=r"^cannot write /dev/full: No space left on device$"):
        finish(sink("/dev/full"), [1])


# Outputs that are no files


def test_devices_are_written_directly() -> None:
    output = sink("/dev/null", order="input")
    assert not output.regular
    finish(output, [1, 0])
    assert not os.path.exists("/dev/null.partial")
    assert sink("-").regular is sink("/dev/stdout").regular is False
    assert sink().regular


def test_standard_output_is_a_stream_or_a_descriptor() -> None:
    stream = io.BytesIO()
    finish(sink("-", stream=stream), [2, 1])
    assert stream.getvalue() == b'{"i":2,"n":0}\n{"i":1,"n":1}\n'
    with open("target", "wb") as target:
        target.write(b"before\n")
        finish(sink("-", stream=target), [2])
        finish(sink("-", stream=target.fileno()), [1])
    assert Path("target").read_bytes() == b'before\n{"i":2,"n":0}\n{"i":1,"n":0}\n'


def test_a_closed_standard_output_is_refused() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    os.close(write_end)
    with pytest.raises(RequestError, match=r"^cannot write to stdout: Bad file descriptor$"):
        sink("-", stream=write_end).open()


def test_a_reader_that_goes_away_is_told_apart() -> None:
    async def scenario() -> None:
        read_end, write_end = os.pipe()
        output = sink("-", stream=write_end)
        output.open()
        await write(output, [0, 1, 2])
        os.close(read_end)
        with pytest.raises(BrokenOutput) as caught:
            await write(output, [3])
        assert str(caught.value) == "stdout closed after 3 records"
        assert caught.value.hint == "use -o FILE to be able to resume"
        assert caught.value.exit_code == 141
        await output.close(complete=False)
        os.close(write_end)

    asyncio.run(scenario())


def test_a_full_pipe_blocks_its_writer_and_not_the_loop() -> None:
    line = b"x" * 299_999 + b"\n"

    async def scenario() -> bytes:
        read_end, write_end = os.pipe()
        output = sink("-", stream=write_end)
        output.open()
        writing = asyncio.ensure_future(output.write([(0, line)]))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not writing.done()
        received = bytearray()
        while len(received) < len(line):
            received += await asyncio.to_thread(os.read, read_end, 65536)
        await writing
        os.close(read_end)
        os.close(write_end)
        return bytes(received)

    assert asyncio.run(scenario()) == line


def test_a_fifo_waits_for_its_reader_and_shows_it_the_end() -> None:
    os.mkfifo("fifo")

    async def scenario(indices: list[int]) -> bytes:
        output = sink("fifo")
        output.open()
        reading = asyncio.ensure_future(asyncio.to_thread(Path("fifo").read_bytes))
        await write(output, indices)
        await output.close(complete=True)
        return await reading

    assert asyncio.run(scenario([7])) == b'{"i":7,"n":0}\n'
    assert asyncio.run(scenario([])) == b""
    assert names() == ["fifo"]


def test_a_fifo_without_reader_does_not_hold_up_an_interrupted_run() -> None:
    os.mkfifo("fifo")
    finish(sink("fifo"), complete=False)
