import pytest
from ragkit.entities import Gazetteer, names, numbers
from ragkit.index import Hit
from ragkit.publicnames import is_private
from ragkit.topics import label, open_topics, prefer


@pytest.fixture(scope="module")
def topics():
    return open_topics()


@pytest.fixture(scope="module")
def gazetteer(default_index):
    return Gazetteer(passage.id for passage in default_index.passages)


def test_labels_are_top_level_modules():
    assert [label("asyncio.Queue.put"), label("json#2"), label("topic:with#1")] == ["asyncio", "json", "language"]


def test_topics_of_most_questions_are_among_the_first_three(topics, questions):
    right = sum(
        not {label(name) for name in question["expect"]}.isdisjoint(topics.classify(question["query"])["topics"])
        for question in questions
    )
    assert right / len(questions) > 0.7


def test_a_question_with_no_known_word_has_no_topic(topics):
    assert topics.classify("zyxwvut?") == {"topics": [], "kind": "other"}


def test_private_modules_are_no_topics(topics):
    assert not [name for name in topics.labels if is_private(name)]


def test_preferred_topics_move_up_and_ties_keep_their_order():
    hits = [Hit(id=name, text="", score=1.0) for name in ("os.walk", "json.loads", "json.dumps", "re.sub")]
    assert [hit["id"] for hit in prefer(hits, ["json"])] == ["json.loads", "json.dumps", "os.walk", "re.sub"]
    assert prefer(hits, []) == hits
    assert [hit["score"] for hit in hits] == [1.0] * 4


def test_names_of_the_corpus_are_found_by_any_of_their_forms(gazetteer):
    assert "collections.OrderedDict" in gazetteer.find("When is OrderedDict better?")["names"]
    assert "asyncio.Queue.put" in gazetteer.find("what does Queue.put wait for")["names"]
    assert gazetteer.find("what does shutil.copytree do")["names"] == ["shutil.copytree"]
    assert "builtins.open" in gazetteer.find("what does `open` return")["names"]


def test_english_words_are_no_names(gazetteer):
    assert gazetteer.find("How do I open a list of files?")["names"] == []


def test_patterns(gazetteer):
    found = gazetteer.find("Since version 3.9, does 'utf' cost 1,000 or 2.5 bytes in os.path? See 3.11.4.")
    assert found["versions"] == ["3.9", "3.11.4"]
    assert found["numbers"] == ["3.9", "1000", "2.5", "3.11.4"]
    assert found["quoted"] == ["utf"]
    assert found["dotted"] == ["os.path"]


def test_numbers_and_names_without_repeats():
    assert numbers("-1 and +1, 0x1F, 1_000; not a1") == ["1", "0x1F", "1000"]
    assert names("Guido wrote read_text, UTF_8 and HTTPServer for os.path in utf8") == [
        "os.path",
        "read_text",
        "UTF_8",
        "HTTPServer",
        "utf8",
        "Guido",
    ]
