"""What every store promises, a folder and a bucket alike: whole objects, and names that are created once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from stageflow.errors import RequestError
from stageflow.stores import Store, store_of

WRITERS = 16


def test_what_is_put_is_read_and_replaced(store: Store, again: Callable[[], Store]) -> None:
    store.put("a/b.json", b"1")
    store.put("a/b.json", b"22")
    store.put("a/empty", b"")
    assert again().read("a/b.json") == b"22"
    assert again().read("a/empty") == b""


def test_what_is_not_there_is_not_found(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        store.read("a/b.json")
    store.delete("a/b.json")
    assert list(store.names()) == []


def test_names_come_sorted_by_prefix_with_their_sizes(store: Store) -> None:
    for name in ("part-000010.jsonl", "part-000009.jsonl", "partial", "a/c", "a/b/d", "ab", "_x/1"):
        store.put(name, name.encode())
    sizes = {name: len(name) for name in ("_x/1", "a/b/d", "a/c", "ab", "part-000009.jsonl", "part-000010.jsonl")}
    assert list(store.names()) == [*sizes.items(), ("partial", 7)]
    assert list(store.names("part-")) == [("part-000009.jsonl", 17), ("part-000010.jsonl", 17)]
    assert list(store.names("a/")) == [("a/b/d", 5), ("a/c", 3)]
    assert [name for name, _ in store.names("a")] == ["a/b/d", "a/c", "ab"]
    assert [name for name, _ in store.names("a/c")] == ["a/c"]
    assert list(store.names("a/nothing/")) == []


def test_a_name_is_created_once(store: Store, again: Callable[[], Store]) -> None:
    assert store.create("commits/1", b"mine")
    assert not again().create("commits/1", b"another's")
    assert store.read("commits/1") == b"mine"
    store.delete("commits/1")
    assert store.create("commits/1", b"anew")


def test_of_many_who_race_for_a_name_one_gets_it(store: Store, again: Callable[[], Store]) -> None:
    begun = threading.Barrier(WRITERS)

    def race(number: int) -> bool:
        own = again()
        begun.wait()
        return own.create("commits/1", b"%d" % number)

    with ThreadPoolExecutor(WRITERS) as writers:
        won = list(writers.map(race, range(WRITERS)))
    assert won.count(True) == 1
    assert store.read("commits/1") == b"%d" % won.index(True)
    assert [name for name, _ in store.names("commits/")] == ["commits/1"]


def test_publishing_may_be_repeated(store: Store, again: Callable[[], Store]) -> None:
    store.put("attempts/1", b"lines")
    store.publish("attempts/1", "dead/part-1")
    again().publish("attempts/1", "dead/part-1")
    assert list(store.names()) == [("dead/part-1", 5)]
    with pytest.raises(FileNotFoundError):
        store.publish("attempts/2", "dead/part-2")


def test_publishing_goes_on_where_it_was_ended(store: Store) -> None:
    store.put("part-1", b"lines")
    store.put("attempts/1", b"lines")
    store.publish("attempts/1", "part-1")
    assert list(store.names()) == [("part-1", 5)]


def test_many_publish_at_once(store: Store, again: Callable[[], Store]) -> None:
    store.put("attempts/1", b"lines")
    begun = threading.Barrier(4)

    def publish(_: int) -> None:
        own = again()
        begun.wait()
        own.publish("attempts/1", "part-1")

    with ThreadPoolExecutor(4) as publishers:
        list(publishers.map(publish, range(4)))
    assert list(store.names()) == [("part-1", 5)]


@pytest.mark.parametrize("name", ["../a", "/a", "a//b", "a/./b", "a/../../b", "", "a/", "a\0b"])
def test_a_name_does_not_lead_out(store: Store, name: str) -> None:
    for ask in (
        lambda: store.put(name, b""),
        lambda: store.create(name, b""),
        lambda: store.read(name),
        lambda: store.publish("a", name),
        lambda: store.publish(name, "a"),
        lambda: store.delete(name),
    ):
        with pytest.raises(OSError, match="is no name in a store"):
            ask()
    assert list(store.names()) == []


def test_a_check_leaves_nothing(store: Store, again: Callable[[], Store]) -> None:
    store.put("part-1", b"1")
    again().check()
    assert list(store.names()) == [("part-1", 1)]


def test_a_store_that_creates_a_name_twice_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str, data: bytes) -> bool:
        store.put(name, data)
        return True

    monkeypatch.setattr(store, "create", create)
    with pytest.raises(RequestError, match="creates a name twice, so two runs could do the same work"):
        store.check()
    assert list(store.names()) == []


@pytest.mark.parametrize("url", ["ftp://host/out", "https://host/out", "file:///out"])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(RequestError, match="can't keep an output behind") as refused:
        store_of(url)
    assert refused.value.hint == "give a folder, or an address of s3://, gs://, az://"
