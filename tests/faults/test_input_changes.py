"""An input that somebody changes while it is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from stageflow import Pipeline, RunReport, StateMismatch

RECORDS = 50


def run(change: str = "", mode: str = "r+") -> RunReport:
    """A run in whose first call ``change`` is written into its own input."""
    pipeline = Pipeline("changes")

    @pipeline.stage(max_in_flight=1, run="inline")
    def same(n: int) -> int:
        if n == 0 and change:
            with open("in.jsonl", mode) as file:
                file.write(change)
        return n

    return pipeline.run_sync("in.jsonl", "out.jsonl", loop="asyncio")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text("".join(f'{{"n":{n}}}\n' for n in range(RECORDS)))


def test_row_32_what_was_read_is_finished_and_the_edit_is_found_by_the_next_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    report = run('{"n":9}')  # as long as what stood there, and what stood there was read
    assert (report.exit_code, report.written, report.not_done) == (3, RECORDS, 0)
    assert [entry.getMessage() for entry in caplog.records] == ["in.jsonl was changed while it was read"]
    assert len(Path("out.jsonl").read_bytes().splitlines()) == RECORDS
    before = {path.name: path.read_bytes() for path in Path().iterdir()}
    with pytest.raises(StateMismatch, match=r"input changed since the last run \(first difference in lines 1-50\)"):
        run()
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == before


def test_row_32_lines_that_were_added_are_done_by_the_next_run() -> None:
    assert run('{"n":50}\n{"n":51}\n', mode="a").exit_code == 3
    report = run()
    assert (report.exit_code, report.read, report.written) == (0, RECORDS + 2, RECORDS + 2)
    assert len(Path("out.jsonl").read_bytes().splitlines()) == RECORDS + 2
