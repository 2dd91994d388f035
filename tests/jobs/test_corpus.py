from hypothesis import given
from hypothesis import strategies as st
from ragkit.corpus import build, cut
from ragkit.publicnames import Module, Public


def test_ids_and_texts_are_the_same_each_time(default_index):
    assert build() == list(default_index.passages)


def test_every_passage_has_a_text_and_an_id_of_its_own(default_index):
    ids = [passage.id for passage in default_index.passages]
    assert len(ids) > 8_000
    assert len(set(ids)) == len(ids)
    assert all(passage.text.strip() for passage in default_index.passages)


def test_names_are_those_a_user_writes(default_index):
    for name in (
        "asyncio.Queue.put",  # written in asyncio/queues.py
        "collections.deque.rotate",  # _collections, in C
        "datetime.datetime.strptime",  # datetime, _pydatetime or _datetime
        "os.path.join",  # posixpath or ntpath
        "os.listdir",  # posix or nt
        "sqlite3.connect",  # _sqlite3 by way of sqlite3.dbapi2
        "builtins.str.join",
        "topic:with#1",
    ):
        assert name in default_index.text


def test_tests_and_demos_stay_out(default_index):
    tops = {passage.id.partition(".")[0] for passage in default_index.passages}
    assert not tops & {"test", "idlelib", "lib2to3", "turtledemo", "pydoc_data", "antigravity"}


def test_expected_passages_of_all_questions_exist(default_index, questions):
    assert {name for question in questions for name in question["expect"]} <= default_index.text.keys()


def test_questions_are_distinct_and_numbered(questions):
    assert len(questions) >= 200
    assert [question["id"] for question in questions] == [f"q{number:03d}" for number in range(1, len(questions) + 1)]
    assert len({question["query"] for question in questions}) == len(questions)
    assert all(question["expect"] for question in questions)


def test_a_whole_takeover_outranks_the_use_of_one_name():
    home = Module("pkg.abc", [], [("_impl", "*")], None)
    user = Module("os", [], [("_impl", "Thing")], None)
    public = Public([Module("_impl", [("_impl.Thing", "doc"), ("_impl.Thing.run", "doc")], [], None), user, home])
    assert public.name("_impl.Thing.run") == "pkg.abc.Thing.run"
    assert public.name("_impl.other") == "_impl.other"


@given(st.lists(st.text("ab c\n", min_size=1, max_size=40), max_size=8), st.integers(1, 60))
def test_cutting_loses_nothing_but_blank_lines(paragraphs, size):
    text = "\n\n".join(paragraphs)
    pieces = cut(text, size)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(piece.strip() for piece in pieces)
