"""What is particular to a bucket: addresses, what is not installed, and services that refuse or don't know better."""

from __future__ import annotations

import builtins
import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from s3_server import Bucket

from stageflow.errors import RequestError
from stageflow.stores import ObjectStore, store_of

pytest.importorskip("obstore")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://key:secret@bucket/out", "the address s3://bucket/out goes on with what may be a key"),
        ("s3://bucket/out?sig=secret", "the address s3://bucket/out goes on with what may be a key"),
        ("gs://bucket/out#secret", "the address gs://bucket/out goes on with what may be a key"),
        ("s3:///out", "s3:///out names no folder of a bucket"),
        ("s3://bucket/a//b", "s3://bucket/a//b names no folder of a bucket"),
        ("s3://bucket/a/../b", "s3://bucket/a/../b names no folder of a bucket"),
    ],
)
def test_addresses_that_are_refused(url: str, said: str) -> None:
    with pytest.raises(RequestError) as refused:
        store_of(url)
    assert said in str(refused.value)
    assert "secret" not in str(refused.value)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def imported(name: str, *rest: Any) -> Any:
        if name.startswith("obstore"):
            raise ImportError(name)
        return plain(name, *rest)

    monkeypatch.setattr(builtins, "__import__", imported)
    with pytest.raises(RequestError) as refused:
        store_of("s3://bucket/out")
    assert str(refused.value) == "s3://bucket/out takes obstore"
    assert refused.value.hint == "pip install 'stageflow[s3]'"


def test_a_whole_bucket_may_be_the_store(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.enter(monkeypatch)
    whole, folder = store_of(f"s3://{bucket.name}/"), store_of(f"s3://{bucket.name}/whole/a")
    folder.put("b/c", b"1")
    assert list(whole.names("whole/a/b/")) == [("whole/a/b/c", 1)]
    assert whole.read("whole/a/b/c") == b"1"


def test_more_than_a_page_is_listed(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.enter(monkeypatch)
    monkeypatch.setattr("stageflow.stores.objects._PAGE", 7)
    store = store_of(bucket.new_folder())
    names = [f"a/{number:03}" for number in range(30)]
    for name in names:
        store.put(name, b"")
    assert [name for name, _ in store.names("a/")] == names
    assert [name for name, _ in store.names("a/01")] == names[10:20]


class Forgiving(http.server.BaseHTTPRequestHandler):
    """A service that speaks the language, and passes over what it does not understand: each write is done."""

    protocol_version = "HTTP/1.1"
    found: dict[str, bytes]
    code = 200

    def do_PUT(self) -> None:
        self.found[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(b"")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(b"<DeleteResult><Deleted><Key>a</Key></Deleted></DeleteResult>")

    def do_GET(self) -> None:
        self.answer(self.found.get(self.path, b""))

    def answer(self, body: bytes) -> None:
        self.send_response(self.code)
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def forgiving(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Forgiving]]:
    handler = type("Handler", (Forgiving,), {"found": {}})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    Bucket(f"http://127.0.0.1:{server.server_port}").enter(monkeypatch)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_service_that_does_not_know_conditions_is_refused(forgiving: type[Forgiving]) -> None:
    with pytest.raises(RequestError) as refused:
        ObjectStore("s3://bucket/out").check()
    assert str(refused.value) == "s3://bucket/out creates a name twice, so two runs could do the same work"
    assert len(forgiving.found) == 1


def test_a_service_that_refuses_is_told_in_one_line(forgiving: type[Forgiving]) -> None:
    forgiving.code = 403
    with pytest.raises(RequestError) as refused:
        ObjectStore("s3://bucket/out").check()
    assert str(refused.value) == "cannot write to s3://bucket/out: the keys in the environment do not allow it"
    assert refused.value.hint == "keys, region and endpoint are read from the environment"
    with pytest.raises(PermissionError):
        ObjectStore("s3://bucket/out").read("a")
