import pytest
from hypothesis import given
from hypothesis import strategies as st
from ragkit.extract import INSUFFICIENT, extract, flat
from ragkit.index import Hit
from ragkit.sentences import first, spans


@given(st.text(max_size=300) | st.text("aB. \n-(1", max_size=120))
def test_spans_are_in_order_and_leave_only_white_space_out(text):
    end = 0
    for left, right in spans(text):
        assert not text[end:left].strip()
        assert text[left:right] == text[left:right].strip() != ""
        end = right
    assert not text[end:].strip()


def test_sentences_end_where_a_reader_says_so():
    text = "Return x, e.g. Decimal('1.5').  See PEP 8. It is\nfast.\n\nArguments:\n- a: One.\n- b: Two."
    assert [text[slice(*span)] for span in spans(text)] == [
        "Return x, e.g. Decimal('1.5').",
        "See PEP 8.",
        "It is\nfast.",
        "Arguments:",
        "- a: One.",
        "- b: Two.",
    ]
    assert first(text) == "Return x, e.g. Decimal('1.5')."
    assert first("") == ""


def test_every_citation_is_an_exact_span(index, questions):
    for question in questions:
        answer = extract(question["query"], index.search(question["query"]), index)
        for cited in answer["citations"]:
            assert index.text[cited["doc"]][cited["start"] : cited["end"]] == cited["quote"]
        quotes = " ".join(flat(cited["quote"]) for cited in answer["citations"])
        assert answer["answer"] == (quotes or INSUFFICIENT)


def test_the_same_question_has_the_same_answer(default_index, questions):
    for question in questions[::10]:
        hits = default_index.search(question["query"])
        assert extract(question["query"], hits, default_index) == extract(question["query"], hits, default_index)


@pytest.mark.parametrize("query", ["Who won the football world cup in 1998?", "How do I bake sourdough bread?", "?"])
def test_what_the_corpus_does_not_know_is_not_answered(index, query):
    assert extract(query, index.search(query), index) == {"answer": INSUFFICIENT, "citations": []}


def test_a_question_is_answered_with_the_sentence_that_covers_it(default_index):
    hits = default_index.search("How do I copy a directory tree?")
    answer = extract("How do I copy a directory tree?", hits, default_index, most=1)
    assert answer["answer"].startswith("Recursively copy a directory tree")
    assert [cited["doc"] for cited in answer["citations"]] == ["shutil.copytree"]


def test_no_passages_no_answer(default_index):
    assert extract("How do I copy a directory tree?", [], default_index)["answer"] == INSUFFICIENT


def test_mentions_steer_the_choice(default_index):
    hits = [
        Hit(id="a", text="Read the file into memory.", score=2.0),
        Hit(id="b", text="Read the file with Path.read_text.", score=1.0),
    ]
    plain = extract("How do I read the file?", hits, default_index, most=1)
    steered = extract("How do I read the file?", hits, default_index, most=1, mentions=["Path.read_text"])
    assert [plain["citations"][0]["doc"], steered["citations"][0]["doc"]] == ["a", "b"]


def test_near_duplicates_are_said_once(default_index):
    hits = [Hit(id=name, text="Copy a directory tree to a place.", score=1.0) for name in ("a", "b")]
    assert len(extract("copy a directory tree", hits, default_index)["citations"]) == 1
