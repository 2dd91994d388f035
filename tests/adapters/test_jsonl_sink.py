"""Writing JSON lines: dead letters to a file of their own, and outputs that are no files."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import resource
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

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


def sink(path: str, **options: Any) -> JsonlSink:
    return JsonlSink(path, **options)


def dead(path: str = "dead.jsonl", **options: Any) -> JsonlSink:
    return JsonlSink(path, mode=0o600, lenient=True, **options)


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


def indices(path: str) -> list[int]:
    async def read() -> list[int]:
        return [record["i"] async for portion in JsonlSource(path).read() for _, record in portion]

    return asyncio.run(read())


# Names


def test_every_batch_is_in_the_file_at_once() -> None:
    async def scenario() -> None:
        output = dead()
        output.open()
        await output.write([(5, b"five\n"), (0, b"zero\n")])
        assert content("dead.jsonl") == b"five\nzero\n"
        await output.write([])
        await output.close(complete=True)
        await output.close(complete=True)

    asyncio.run(scenario())
    assert content("dead.jsonl") == b"five\nzero\n"


def test_what_exists_is_not_touched() -> None:
    Path("dead.jsonl").write_bytes(b"old")
    with pytest.raises(RequestError) as caught:
        dead().open()
    assert str(caught.value) == "dead.jsonl exists"
    assert caught.value.hint == "choose another --dead, or pass --fresh to keep it under another name"
    assert (names(), content("dead.jsonl")) == (["dead.jsonl"], b"old")


def test_fresh_renames_what_exists_and_deletes_nothing() -> None:
    for name in ("dead.jsonl", "dead.jsonl.1"):
        Path(name).write_bytes(name.encode())
    finish(dead(fresh=True), [1])
    assert names() == ["dead.jsonl", "dead.jsonl.1", "dead.jsonl.2"]
    assert content("dead.jsonl.1") == b"dead.jsonl.1"
    assert content("dead.jsonl.2") == b"dead.jsonl"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing/dead.jsonl", "cannot write to missing: No such file or directory"),
        ("file/dead.jsonl", "cannot write to file: Not a directory"),
        ("folder", "cannot write to folder: Is a directory"),
    ],
)
def test_a_place_that_can_not_be_written_to_is_refused(path: str, message: str) -> None:
    Path("file").write_bytes(b"")
    Path("folder").mkdir()
    with pytest.raises(RequestError) as caught:
        dead(path).open()
    assert str(caught.value) == message
    assert names() == ["file", "folder"]


def test_a_directory_without_permission_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(files_module.tempfile, "TemporaryFile", refuse)
    with pytest.raises(RequestError, match=r"^cannot write to \.: Permission denied$"):
        dead().open()


def test_a_symbolic_link_stays_a_link() -> None:
    Path("disk").mkdir()
    Path("dead.jsonl").symlink_to("disk/real.jsonl")
    finish(dead(), [1, 0])
    assert Path("dead.jsonl").is_symlink()
    assert os.listdir("disk") == ["real.jsonl"]
    assert indices("disk/real.jsonl") == [1, 0]


@pytest.mark.parametrize(("mode", "expected"), [(0o666, 0o640), (0o600, 0o600)])
def test_permissions_follow_the_umask_from_the_first_moment(mode: int, expected: int) -> None:
    old = os.umask(0o027)
    try:
        finish(JsonlSink("dead.jsonl", mode=mode), [0, 1])
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat("dead.jsonl").st_mode) == expected


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
        output = dead()
        output.open()
        await output.write([(0, b"x" * 899 + b"\n")])
        with small_files(), pytest.raises(StorageError) as caught:
            await output.write([(1, b"y" * 500 + b"\n")])
        assert str(caught.value) == "cannot write dead.jsonl: File too large"
        await output.close(complete=False)

    asyncio.run(scenario())
    assert content("dead.jsonl") == b"x" * 899 + b"\n"


def test_short_writes_are_invisible(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data[:1])))
        finish(dead(), [3, 1, 2])
    assert indices("dead.jsonl") == [3, 1, 2]


def test_a_failing_fsync_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(StorageError, match=r"^cannot write dead\.jsonl: Input/output error$"):
            finish(dead(), [1])


def test_the_file_and_its_directory_are_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync = os.fsync

    def note_fsync(descriptor: int) -> None:
        done.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", note_fsync)
        finish(dead(), [0, 1])
    assert done == ["file", "directory"]


def test_no_space_on_a_device() -> None:
    with pytest.raises(StorageError, match=r"^cannot write /dev/full: No space left on device$"):
        finish(sink("/dev/full"), [1])


# Outputs that are no files


def test_devices_are_written_directly() -> None:
    finish(sink("/dev/null"), [1, 0])
    assert names() == []
    assert not any(map(files_module.is_file_name, ("/dev/null", "-", "/dev/stdout")))
    assert files_module.is_file_name("out.jsonl")


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
