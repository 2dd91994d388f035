"""Two full-text engines behind one interface: tantivy where it is installed, else FTS5 of the standard library."""

from __future__ import annotations

import sqlite3
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from ragkit.thesaurus import synonyms

try:
    import tantivy  # type: ignore[import-not-found, unused-ignore]  # an extra
except ImportError:
    tantivy = None  # type: ignore[assignment, unused-ignore]  # without the extra, SQLite answers

TITLE_BOOST = 0.5  # names are short, and BM25 favours short fields enough as it is
SYNONYM_BOOST = 0.4


class Engine(Protocol):
    """BM25 over the title and the text of numbered passages. Any number of threads may search at once."""

    def search(self, words: Sequence[str], limit: int) -> list[tuple[int, float]]:
        """Return (number, score) of the passages that match any of the plain lower-case words, best first."""

    def close(self) -> None:
        """Free what the engine holds; it is not searched afterwards."""


class TantivyEngine:
    """Tantivy in memory, tokenizer ``en_stem``. A search releases the GIL, so threads search in parallel."""

    def __init__(self, rows: Iterable[tuple[str, str]]) -> None:
        fields = tantivy.SchemaBuilder()
        fields.add_text_field("title", tokenizer_name="en_stem", index_option="freq")
        fields.add_text_field("body", tokenizer_name="en_stem", index_option="freq")
        fields.add_integer_field("number", fast=True)
        self._index = tantivy.Index(fields.build())
        writer = self._index.writer(50_000_000, 1)  # one thread: one order of documents, so ties break alike
        for number, (title, body) in enumerate(rows):
            writer.add_document(tantivy.Document(title=title, body=body, number=number))
        writer.commit()
        writer.wait_merging_threads()
        self._index.reload()

    def search(self, words: Sequence[str], limit: int) -> list[tuple[int, float]]:
        """See :class:`Engine`."""
        asked = [f'"{word}"' for word in words]
        also = [f'"{other}"^{SYNONYM_BOOST}' for word in words for other in synonyms(word)]
        query = self._index.parse_query(" ".join(asked + also), ["title", "body"], {"title": TITLE_BOOST})
        searcher = self._index.searcher()
        hits = searcher.search(query, limit, count=False).hits
        numbers = searcher.fast_field_values("number", [address for _, address in hits])
        return [(int(number or 0), float(score)) for number, (score, _) in zip(numbers, hits, strict=True)]

    def close(self) -> None:
        """Nothing is held but memory."""


class SqliteEngine:
    """FTS5 with the porter stemmer in a private in-memory database; a lock lets one thread search at a time.

    Its ``bm25()`` cannot weigh one term less than another, so synonyms stay out of its queries.
    """

    def __init__(self, rows: Iterable[tuple[str, str]]) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(":memory:", check_same_thread=False)
        self._db.execute("CREATE VIRTUAL TABLE passage USING fts5(title, body, tokenize = 'porter ascii')")
        numbered = ((number, title, body) for number, (title, body) in enumerate(rows))
        self._db.executemany("INSERT INTO passage(rowid, title, body) VALUES (?, ?, ?)", numbered)
        self._db.commit()
        self._closed = weakref.finalize(self, self._db.close)  # an index kept for the whole process is closed at exit

    def search(self, words: Sequence[str], limit: int) -> list[tuple[int, float]]:
        """See :class:`Engine`."""
        sql = (
            f"SELECT rowid, -bm25(passage, {TITLE_BOOST}, 1.0) AS score FROM passage"
            " WHERE passage MATCH ? ORDER BY score DESC, rowid LIMIT ?"
        )
        any_word = " OR ".join(f'"{word}"' for word in words)
        with self._lock:
            return self._db.execute(sql, (any_word, limit)).fetchall()

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._closed()


ENGINES: Mapping[str, type[TantivyEngine] | type[SqliteEngine]] = (
    {"tantivy": TantivyEngine, "sqlite": SqliteEngine} if tantivy else {"sqlite": SqliteEngine}
)
