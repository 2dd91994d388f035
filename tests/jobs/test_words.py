import pytest
from hypothesis import given
from hypothesis import strategies as st
from ragkit.question import kind_of
from ragkit.thesaurus import synonyms
from ragkit.words import STOPWORDS, question_words, stem, suffix_stem, terms, words


def test_identifiers_give_themselves_and_their_parts():
    assert words("a.OrderedDict.move_to") == ["a", "ordereddict", "ordered", "dict", "move", "to"]
    assert words("HTTPServer utf8") == ["httpserver", "http", "server", "utf8", "utf", "8"]


def test_stopwords_are_dropped_unless_they_are_meant_literally():
    assert question_words("How do I copy the file?") == ["copy", "file"]
    assert question_words("What does `with` do?") == ["with"]
    assert question_words("What is the for loop?") == ["for", "loop"]


def test_question_words_are_distinct_and_in_order():
    assert question_words("sort a list, sort a tuple") == ["sort", "list", "tuple"]


def test_terms_are_stemmed_alike():
    assert terms("copying the files") == terms("copied a file")
    assert not STOPWORDS.intersection(terms("what is to be done with the queue"))


@pytest.mark.parametrize(
    ("one", "other"),
    [("copies", "copied"), ("running", "run"), ("directories", "directory"), ("creating", "create"), ("files", "file")],
)
def test_the_fallback_joins_common_forms(one, other):
    assert suffix_stem(one) == suffix_stem(other)


@pytest.mark.parametrize("word", ["class", "sha256", "os", "id", "bus"])
def test_the_fallback_leaves_short_and_odd_words_alone(word):
    assert suffix_stem(word) == word


@given(st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=20))
def test_stems_are_never_empty_and_hardly_longer(word):
    for stemmed in (stem(word), suffix_stem(word)):
        assert 0 < len(stemmed) <= len(word) + 1


@given(st.text(max_size=200))
def test_any_text_can_be_cut_into_words(text):
    assert all(word and word == word.lower() for word in words(text))
    assert len(set(question_words(text))) == len(question_words(text))


def test_synonyms_never_include_the_word_itself():
    assert "directory" in synonyms("folder")
    assert "normalize" in synonyms("normalise")
    assert synonyms("sentinel") == ()
    assert all(word not in synonyms(word) for word in ("delete", "remove", "folder", "merge", "function"))


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("How do I copy a file?", "how-to"),
        ("How many CPU cores are there?", "how-many"),
        ("When is the else clause executed?", "when"),
        ("Who calls __del__?", "who"),
        ("Where are temporary files kept?", "where"),
        ("Which function expands a tilde?", "which"),
        ("What is a deque?", "definition"),
        ("copy a file", "other"),
    ],
)
def test_question_kinds(question, kind):
    assert kind_of(question) == kind
