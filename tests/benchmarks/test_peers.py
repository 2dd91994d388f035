"""The comparison with other tools: who is installed has the right answers, wrong ones are caught, the rest is named."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import contenders  # noqa: E402 - the benchmarks' folder has to be on the path first
import peers  # noqa: E402
import plot  # noqa: E402
import workload  # noqa: E402
from contenders.contender import Contender, Job, Stage  # noqa: E402

TINY = ["--tiny", "--loop", "asyncio"]
SETTINGS = workload.Settings("tiny", "asyncio")
BY_HAND = next(each for each in contenders.CONTENDERS if each.name == "by hand")
QUESTIONS: dict[str, Callable[[Contender, Path], peers.Spent]] = {
    "no-op": lambda contender, _: peers.no_op([contender], SETTINGS)[contender.name](),
    "sleeping": lambda contender, _: peers.sleeping([contender], SETTINGS)[contender.name](),
    "file to file": lambda contender, path: peers.file_to_file([contender], SETTINGS, path)[contender.name](),
}


def name_of(contender: Contender) -> str:
    return contender.name


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("contender", contenders.CONTENDERS, ids=name_of)
def test_has_the_right_answers(contender: Contender, question: str, tmp_path: Path) -> None:
    if why := contender.missing():
        pytest.skip(why)
    if question == "sleeping" and not contender.concurrent:
        pytest.skip("one call at a time would take too long")
    assert QUESTIONS[question](contender, tmp_path).wall > 0


def test_prints_a_table_and_writes_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody = Contender("nobody", BY_HAND.run, library="no_such_library", distribution="no-such-library")
    monkeypatch.setattr(peers, "CONTENDERS", (*contenders.CONTENDERS[:4], nobody))
    assert peers.main([*TINY, "--json", str(tmp_path / "told.json")]) == 0
    told = json.loads((tmp_path / "told.json").read_text())
    ours = [each.name for each in contenders.CONTENDERS[:4]]
    assert list(told["contenders"]) == ours
    assert told["skipped"] == {"nobody": "not installed"}
    assert {"date", "python", "machine", "load", "loop", "mode", "rounds"} <= told.keys()
    answered = {work: [row["contender"] for row in told["rows"] if row["work"] == work] for work in told["works"]}
    waiting = [name for name in ours if name != "bare loop"]
    assert answered == {"no-op": ours, "file to file": ours, "sleeping, CPU": waiting, "sleeping": waiting}
    skipped, _, title, *table, last = capsys.readouterr().out.splitlines()
    assert skipped == "skipped: nobody, not installed"
    assert title.startswith("peers (tiny, asyncio)")
    assert len(table) == 1 + len(told["rows"])
    assert json.loads(last)["rows"] == told["rows"]


def test_who_does_not_import_is_told_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_broken_library.py").write_text("import what_it_needs\n")
    monkeypatch.syspath_prepend(tmp_path)
    why = replace(BY_HAND, library="a_broken_library").missing()
    assert why == "does not import here: No module named 'what_it_needs'"


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_lost_record_is_caught(question: str, tmp_path: Path) -> None:
    def forgetful(job: Job, items: Iterable[workload.Item], take: Any, settings: workload.Settings) -> None:
        BY_HAND.run(job, [item for item in items if item["n"]], take, settings)

    with pytest.raises(workload.WrongAnswer, match="forgetful: "):
        QUESTIONS[question](replace(BY_HAND, name="forgetful", run=forgetful), tmp_path)


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_wrong_result_is_caught(question: str, tmp_path: Path) -> None:
    def careless(job: Job, items: Iterable[workload.Item], take: Any, settings: workload.Settings) -> None:
        BY_HAND.run(job, items, lambda item: take(item | {"third": 0}), settings)

    with pytest.raises(workload.WrongAnswer, match="careless: "):
        QUESTIONS[question](replace(BY_HAND, name="careless", run=careless), tmp_path)


def test_more_calls_in_progress_than_agreed_are_caught(tmp_path: Path) -> None:
    def greedy(job: Job, items: Iterable[workload.Item], take: Any, settings: workload.Settings) -> None:
        stages = [Stage(stage.work, stage.plain, stage.workers + 1) for stage in job.stages]
        BY_HAND.run(replace(job, stages=stages), items, take, settings)

    with pytest.raises(workload.WrongAnswer, match="greedy: 17 calls in progress where 16 were agreed"):
        QUESTIONS["sleeping"](replace(BY_HAND, name="greedy", run=greedy), tmp_path)


def test_ratios_are_taken_within_a_round() -> None:
    report = workload.Report("some", SETTINGS, peers.COLUMNS)
    found = {
        "stageflow": [peers.Spent(2.0, 1.0), peers.Spent(2.0, 1.0), peers.Spent(2.0, 10.0)],
        "by hand, tuned": [peers.Spent(1.0, 2.0), peers.Spent(4.0, 2.0), peers.Spent(1.0, 5.0)],
        "other": [peers.Spent(6.0, 4.0), peers.Spent(8.0, 2.0), peers.Spent(8.0, 100.0)],
    }
    peers.tell(report, "CPU", found)
    peers.tell(report, "wall", found, wall=True)
    other = [row for row in report.rows if row["contender"] == "other"]
    assert [(row["of tuned"], row["lead"]) for row in other] == [(2.0, 4.0), (6.0, 4.0)]
    assert [row["us/record"] for row in other] == [4e6, 8e6]
    assert [row["share"] for row in other] == [None, 1 / 8 / peers.BOUND]


def test_the_extra_installs_all_peers() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = " ".join(project["optional-dependencies"]["bench"])
    assert [each.name for each in contenders.from_extra() if f"{each.distribution}>=" not in extra] == []


def test_to_list_the_contenders_loads_none_of_them() -> None:
    listed = "import contenders, sys; print([c.name for c in contenders.CONTENDERS if c.library in sys.modules])"
    found = subprocess.run([sys.executable, "-c", listed], cwd=BENCHMARKS, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# The picture


def told() -> dict[str, Any]:
    return json.loads((BENCHMARKS / "results" / "peers.json").read_text())


def test_the_picture_names_all_contenders_and_what_it_was_measured_with(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    light, dark = plot.draw(told(), tmp_path / "picture.svg")
    assert dark.name == "picture-dark.svg"
    for path in (light, dark):
        words = " ".join(ElementTree.parse(path).getroot().itertext())
        for part in (*told()["contenders"], told()["machine"], told()["python"], told()["date"]):
            assert part in words
    assert light.read_bytes() != dark.read_bytes()


def test_the_same_results_give_the_same_file(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    first, *_ = plot.draw(told(), tmp_path / "first.svg")
    second, *_ = plot.draw(told(), tmp_path / "second.svg")
    assert first.read_bytes() == second.read_bytes()


def test_a_png_is_drawn_once(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert plot.draw(told(), tmp_path / "picture.png") == [tmp_path / "picture.png"]
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
