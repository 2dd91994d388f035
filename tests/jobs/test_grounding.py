import copy
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ragkit.entities import names, numbers
from ragkit.extract import INSUFFICIENT, Citation, extract
from ragkit.grounding import validate
from ragkit.index import Hit

TEXT = "The default limit is 1000 frames, set by sys.setrecursionlimit since Python 3.11. Guido chose it."
HITS = [Hit(id="sys.limits", text=TEXT, score=1.0)]


def answer(text=TEXT):
    return {"answer": text, "citations": [Citation(doc="sys.limits", start=0, end=len(TEXT), quote=TEXT)]}


def test_quotes_are_grounded(index, questions):
    for question in questions:
        hits = index.search(question["query"])
        found = extract(question["query"], hits, index)
        verdict = validate(found, hits, index)
        assert verdict["problems"] == ([INSUFFICIENT] if found["answer"] == INSUFFICIENT else [])
        assert verdict["grounded"] == (found["answer"] != INSUFFICIENT)


def test_a_changed_number_is_a_problem_in_every_answer_that_has_one(default_index, questions):
    changed = 0
    for question in questions:
        hits = default_index.search(question["query"])
        found = extract(question["query"], hits, default_index)
        for number in numbers(found["answer"])[:1]:
            other = {**found, "answer": re.sub(rf"(?<![\w.]){re.escape(number)}(?!\w)", "7351", found["answer"])}
            if other["answer"] != found["answer"]:
                changed += 1
                assert "the number 7351 is not in the evidence" in validate(other, hits, default_index)["problems"]
    assert changed > 5


def test_a_changed_name_is_a_problem_in_every_answer_that_has_one(default_index, questions):
    changed = 0
    for question in questions:
        hits = default_index.search(question["query"])
        found = extract(question["query"], hits, default_index)
        for name in [name for name in names(found["answer"]) if "_" in name or "." in name][:1]:
            changed += 1
            other = {**found, "answer": found["answer"].replace(name, "frobnicate_all")}
            assert "the name frobnicate_all is not in the evidence" in validate(other, hits, default_index)["problems"]
    assert changed > 5


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (TEXT.replace("1000", "1,000"), None),
        ("Since Python 3.11 the default limit is 1000 frames.", None),
        (TEXT.replace("1000", "3000"), "the number 3000 is not in the evidence"),
        (TEXT.replace("3.11", "3.12"), "the number 3.12 is not in the evidence"),
        (TEXT.replace("Guido", "Barry"), "the name Barry is not in the evidence"),
        (TEXT.replace("sys.set", "os.set"), "the name os.setrecursionlimit is not in the evidence"),
        (TEXT.replace("setrecursionlimit", "limits"), None),  # the cited passage's own name
    ],
)
def test_numbers_and_names(default_index, text, problem):
    verdict = validate(answer(text), HITS, default_index)
    assert verdict["problems"] == ([problem] if problem else [])
    assert verdict["grounded"] == (problem is None)


def test_unrelated_words_are_a_problem(default_index):
    verdict = validate(answer("Bake the bread until its crust is brown."), HITS, default_index)
    assert not verdict["grounded"]
    assert verdict["coverage"] < 0.2
    assert "word weight" in verdict["problems"][0]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"end": len(TEXT) + 1}, "are not in sys.limits"),
        ({"start": -1}, "are not in sys.limits"),
        ({"start": 5, "end": 5}, "are not in sys.limits"),
        ({"start": 1}, "the quote is not what stands at 1"),
        ({"doc": "os.walk"}, "os.walk is cited but was not retrieved"),
    ],
)
def test_citations_must_be_exact(default_index, change, problem):
    wrong = answer()
    wrong["citations"][0].update(change)
    assert any(problem in each for each in validate(wrong, HITS, default_index)["problems"])


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        "text",
        {},
        {"answer": "text"},
        {"answer": "", "citations": []},
        {"answer": 5, "citations": []},
        {"answer": "text", "citations": None},
        {"answer": "text", "citations": []},
        {"answer": "text", "citations": [{"doc": "sys.limits", "start": True, "end": 2, "quote": ""}]},
        {"answer": "text", "citations": [{"doc": "sys.limits", "start": 0, "end": 2}]},
    ],
)
def test_what_is_no_answer_is_a_problem(default_index, wrong):
    verdict = validate(wrong, HITS, default_index)
    assert not verdict["grounded"]
    assert verdict["problems"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["answer", "citations", "doc", "start", "end", "quote"]), inner, max_size=6)
    ),
    max_leaves=12,
)


@given(wrong=JSON)
def test_anything_gets_a_verdict_and_stays_as_it_was(default_index, wrong):
    before = copy.deepcopy(wrong)
    verdict = validate(wrong, HITS, default_index)
    assert verdict["grounded"] == (not verdict["problems"])
    assert wrong == before
