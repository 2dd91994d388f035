"""The benchmark of the client runs, and notices wrong answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httptools")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import llm_client
import workload

TINY = ["--tiny", "--loop", "asyncio"]


def test_it_tells_what_it_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(llm_client, "CLIENTS", {llm_client.OURS: llm_client.with_stageflow})
    assert llm_client.main(TINY) == 0
    told = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert [row["client"] for row in told["rows"]] == [llm_client.OURS, llm_client.STAGE]
    assert [row["seen"] for row in told["rows"]] == [8, 8]


@pytest.mark.parametrize("name", ["complete", "run"])
def test_a_wrong_answer_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind: Any = llm_client.Chat if name == "complete" else llm_client.Pipeline
    right = getattr(kind, name)

    async def wrong(self: Any, *given: Any, **options: Any) -> Any:
        answer = await right(self, *given, **options)
        if name == "complete":
            answer.text = answer.text.replace("answer", "guess")
        else:
            given[1].write_bytes(given[1].read_bytes().replace(b"answer 7 ", b"answer 8 "))
        return answer

    monkeypatch.setattr(llm_client, "CLIENTS", {llm_client.OURS: llm_client.with_stageflow})
    monkeypatch.setattr(kind, name, wrong)
    with pytest.raises((workload.WrongAnswer, ExceptionGroup)) as caught:
        llm_client.main(TINY)
    assert caught.group_contains(workload.WrongAnswer) if isinstance(caught.value, ExceptionGroup) else True
