import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ragkit.corpus import Passage
from ragkit.engines import ENGINES
from ragkit.index import Index, open_index, title_words

SMALL = [
    Passage("shutil.copytree", "Recursively copy a directory tree."),
    Passage("shutil._copy_all", "Recursively copy a directory tree."),
    Passage("os.remove", "Remove a file."),
    Passage("topic:with#1", "The with statement wraps the execution of a block."),
]


@pytest.fixture(scope="module", params=sorted(ENGINES))
def small(request):
    index = Index(SMALL, request.param)
    yield index
    index.close()


def test_hits_have_id_text_and_falling_scores(index):
    hits = index.search("How do I copy a directory tree?", limit=7)
    assert len(hits) == 7
    assert all(hit["text"] == index.text[hit["id"]] for hit in hits)
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    assert "shutil.copytree" in [hit["id"] for hit in hits]


def test_the_same_question_has_the_same_hits(index, questions):
    for question in questions[::20]:
        assert index.search(question["query"]) == index.search(question["query"])


def test_recall_at_five(index, questions):
    found = sum(
        any(hit["id"] in question["expect"] for hit in index.search(question["query"])) for question in questions
    )
    assert found / len(questions) >= 0.8


def test_threads_get_what_one_thread_gets(index, questions):
    asked = [question["query"] for question in questions[:40]]
    alone = [index.search(query) for query in asked]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(index.search, asked)) == alone


def test_public_names_come_before_private_ones(small):
    assert [hit["id"] for hit in small.search("copy a directory tree")][:2] == ["shutil.copytree", "shutil._copy_all"]


def test_synonyms_count_in_the_order(small):
    assert small.search("delete a file")[0]["id"] == "os.remove"


def test_keywords_can_be_asked_for(small):
    assert small.search("What does `with` do?")[0]["id"] == "topic:with#1"


@pytest.mark.parametrize("query", ["", "   ", "?", "how do I", "zyxwvut"])
def test_no_known_word_no_hit(small, query):
    assert small.search(query) == []


@given(
    query=st.text(max_size=80) | st.sampled_from(['"', "a AND (b", "title:x^9", "* OR", "NEAR(a b)", "x' --", "+a -b"])
)
def test_no_question_breaks_the_query_syntax(small, query):
    assert len(small.search(query)) <= len(SMALL)


def test_an_unknown_retriever_is_refused():
    with pytest.raises(ValueError, match="choose one of auto"):
        Index(SMALL, "elastic")


def test_a_missing_retriever_says_what_to_install(monkeypatch):
    monkeypatch.setattr("ragkit.index.ENGINES", {"sqlite": ENGINES["sqlite"]})
    with pytest.raises(ValueError, match="pip install tantivy"):
        Index(SMALL, "tantivy")
    assert Index(SMALL, "auto").retriever == "sqlite"


def test_the_index_is_made_once():
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(id, pool.map(open_index, ["auto"] * 4)))) == 1


def test_compound_names_give_their_halves():
    assert title_words("shutil.copytree", {"copi": 9, "tree": 9}) == ["shutil", "copytree", "copy", "tree"]
    assert title_words("shutil.copytree", {}) == ["shutil", "copytree"]


WITHOUT_EXTRAS = """
import json, sys
sys.modules.update(dict.fromkeys(["tantivy", "Stemmer", "xllamacpp"]))
from ragkit.index import open_index
from ragkit.words import stem, suffix_stem
import ragkit.local_model
lines = open(sys.argv[1], encoding="utf-8").read().splitlines()
index, questions = open_index(), [json.loads(line) for line in lines]
found = sum(any(hit["id"] in q["expect"] for hit in index.search(q["query"])) for q in questions)
print(index.retriever, stem("copied") == suffix_stem("copied"), found / len(questions))
"""


def test_it_works_without_any_extra(jobs):
    command = [sys.executable, "-c", WITHOUT_EXTRAS, str(jobs / "queries.jsonl")]
    done = subprocess.run(command, cwd=jobs, capture_output=True, text=True, check=True, timeout=60)
    retriever, fallback, recall = done.stdout.split()
    assert (retriever, fallback) == ("sqlite", "True")
    assert float(recall) >= 0.75
