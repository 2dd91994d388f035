"""Scripts of the test server: which call meets which fault, and what is no script."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from stageflow import RequestError
from stageflow.testing import Script, TestServer, read_script
from stageflow.testing.faults import NO_FAULT, Call, Draws, Fate, Fates, Latency
from stageflow.testing.script import script_of

CHAT, EMBEDDINGS = "chat/completions", "embeddings"


def fates(*faults: dict[str, Any], seed: int = 1) -> Fates:
    return Fates(script_of({"fault": list(faults)}).faults, Draws(seed))


def call(number: int, path: str = CHAT, model: str = "m", **given: Any) -> Call:
    return Call(**{"identity": f"#{number}", "path": path, "model": model, "number": number, **given})


def kinds(told: Fates, count: int = 10_000, **given: Any) -> list[str]:
    """What befalls the first calls."""
    struck = [told.of(call(number, **given)).fault for number in range(1, count + 1)]
    return [fault.do if fault else "ok" for fault in struck]


class TestWhichCalls:
    def test_shares_are_of_all_calls_and_add_up(self) -> None:
        told = kinds(fates({"do": "error", "share": 0.1}, {"do": "quota", "share": 0.3}, {"do": "hang", "share": 0.05}))
        for do, share in (("error", 0.1), ("quota", 0.3), ("hang", 0.05), ("ok", 0.55)):
            assert told.count(do) / len(told) == pytest.approx(share, abs=0.02), do

    def test_shares_above_one_leave_the_rest_to_the_last(self) -> None:
        told = kinds(fates({"do": "error", "share": 0.7}, {"do": "hang", "share": 0.7}))
        assert set(told) == {"error", "hang"}
        assert told.count("hang") / len(told) == pytest.approx(0.3, abs=0.02)

    def test_exact_numbers_and_spans(self) -> None:
        told = fates({"do": "error", "calls": [2, "5-7", "11-"]})
        assert [n for n, kind in enumerate(kinds(told, 14), 1) if kind == "error"] == [2, 5, 6, 7, 11, 12, 13, 14]

    def test_what_is_certain_comes_before_what_is_drawn(self) -> None:
        told = kinds(fates({"do": "hang", "share": 1.0}, {"do": "error", "calls": 3}), 4)
        assert told == ["hang", "hang", "error", "hang"]

    def test_numbers_count_the_calls_of_the_path_and_the_model(self) -> None:
        third = call(9, of_path=3, of_model=7, of_both=1)
        assert fates({"do": "error", "calls": 3, "path": "/v1/chat/completions"}).of(third).fault
        assert fates({"do": "error", "calls": 7, "model": "m"}).of(third).fault
        assert fates({"do": "error", "calls": 1, "model": "m", "path": CHAT}).of(third).fault
        assert fates({"do": "error", "calls": 9}).of(third).fault
        assert fates({"do": "error", "calls": 9, "model": "m"}).of(third) is NO_FAULT

    def test_a_path_and_a_model(self) -> None:
        of_path = fates({"do": "error", "path": "/v1/embeddings"})
        assert kinds(of_path, 3) == ["ok"] * 3
        assert kinds(of_path, 3, path=EMBEDDINGS) == ["error"] * 3
        of_model = fates({"do": "error", "model": "large", "share": 1.0})
        assert kinds(of_model, 3) == ["ok"] * 3
        assert kinds(of_model, 3, model="large") == ["error"] * 3

    def test_a_seed_says_it_again_and_another_does_not(self) -> None:
        fault = {"do": "error", "share": 0.5}
        assert kinds(fates(fault, seed=1), 100) == kinds(fates(fault, seed=1), 100)
        assert kinds(fates(fault, seed=1), 100) != kinds(fates(fault, seed=2), 100)

    def test_the_draw_goes_by_the_identity_and_not_by_the_number(self) -> None:
        told = fates({"do": "error", "share": 0.5})
        first = [told.of(call(n, identity=f"k{n} 1")) for n in range(1, 101)]
        again = [told.of(call(1000 - n, identity=f"k{n} 1")) for n in range(1, 101)]
        assert first == again
        assert first != [told.of(call(n, identity=f"k{n} 2")) for n in range(1, 101)], "a retry may fare better"

    def test_a_reset_before_the_body_comes_before_all_others(self) -> None:
        told = fates({"do": "error", "calls": 1}, {"do": "hang", "share": 0.6}, {"do": "reset_before", "share": 0.5})
        before = [told.at_head(call(number, model="")) for number in range(1, 1001)]
        assert sum(before) == pytest.approx(500, abs=50)
        rest = [told.of(call(n)).fault for n in range(2, 1001) if not before[n - 1]]
        assert {fault.do for fault in rest if fault} == {"hang"}

    def test_delays_add_up_and_leave_the_fault_alone(self) -> None:
        told = fates(
            {"do": "delay", "seconds": 2, "calls": "1-2"}, {"do": "delay", "times": 50}, {"do": "error", "calls": 1}
        )
        first, second, third = (told.of(call(number)) for number in (1, 2, 3))
        assert (first.seconds, first.times) == (2.0, 50.0)
        assert first.fault is not None
        assert second == Fate(None, 2.0, 50.0)
        assert third == Fate(None, 0.0, 50.0)


class TestLatency:
    def draw(self, latency: Latency, count: int = 5000) -> list[float]:
        return [latency.draw(Draws(3), "latency", str(number)) for number in range(count)]

    def test_constant(self) -> None:
        assert set(self.draw(Latency(low=0.25, high=0.25), 10)) == {0.25}

    def test_even(self) -> None:
        drawn = self.draw(Latency(low=1.0, high=3.0))
        assert 1.0 <= min(drawn) < 1.01
        assert 2.99 < max(drawn) < 3.0
        assert statistics.fmean(drawn) == pytest.approx(2.0, abs=0.05)

    def test_lognormal(self) -> None:
        cuts = statistics.quantiles(self.draw(Latency(low=0.8, high=0.8, sigma=0.5)), n=100)
        assert cuts[49] == pytest.approx(0.8, rel=0.05)
        assert cuts[83] / cuts[49] == pytest.approx(1.65, rel=0.08), "exp(sigma) at one standard deviation"

    def test_a_tail_and_the_most(self) -> None:
        drawn = self.draw(Latency(low=0.1, high=0.1, tail=0.02, times=50))
        assert sorted(set(drawn)) == [0.1, 5.0]
        assert drawn.count(5.0) / len(drawn) == pytest.approx(0.02, abs=0.006)
        assert max(self.draw(Latency(low=0.1, high=0.1, tail=0.02, times=50, most=1.0))) == 1.0


TOML = """
seed = 7
latency = { median = 0.8, sigma = 0.4, tail = 0.02, times = 50 }
answer_tokens = [8, 64]
models = ["small", "large"]

[capacity]
in_flight = 64
beyond = "slow"

[prices.small]
input = 0.15
output = 0.6

[[limit]]
model = "small"
requests_per_minute = 3000

[[fault]]
do = "rate_limit"
share = 0.1
retry_after = 2
retry_after_as = "date"

[[fault]]
do = "error"
calls = ["100-200"]
status = 503
after = [0.1, 0.2]
"""

LINES = [
    {"seed": 7, "latency": {"median": 0.8, "sigma": 0.4, "tail": 0.02, "times": 50}, "answer_tokens": [8, 64]},
    {"models": ["small", "large"], "capacity": {"in_flight": 64, "beyond": "slow"}},
    {"prices": {"small": {"input": 0.15, "output": 0.6}}},
    {"limit": {"model": "small", "requests_per_minute": 3000}},
    {"fault": {"do": "rate_limit", "share": 0.1, "retry_after": 2, "retry_after_as": "date"}},
    {"fault": {"do": "error", "calls": ["100-200"], "status": 503, "after": [0.1, 0.2]}},
]


class TestFiles:
    def test_toml_and_json_lines_are_one_format(self, tmp_path: Path) -> None:
        toml, lines = tmp_path / "script.toml", tmp_path / "script.jsonl"
        toml.write_text(TOML)
        lines.write_text("\n\n".join(map(json.dumps, LINES)))
        script = read_script(toml)
        assert read_script(lines) == script
        assert script.seed == 7
        assert script.answer_tokens == (8, 64)
        assert script.capacity is not None
        assert script.prices["small"].output == 0.6
        assert [fault.do for fault in script.faults] == ["rate_limit", "error"]
        assert script.faults[1].calls == (range(100, 201),)
        assert script.faults[1].after == Latency(low=0.1, high=0.2)

    def test_nothing_is_a_script(self, tmp_path: Path) -> None:
        path = tmp_path / "empty.toml"
        path.write_text("")
        assert read_script(path) == Script() == script_of({})

    @pytest.mark.parametrize(
        ("line", "old", "new", "message"),
        [
            (4, "answer_tokens = [8, 64]", "answer_tokens = [64, 8]", "answer_tokens must be a number of tokens"),
            (2, "seed = 7", "sead = 7", "sead is not known here"),
            (2, "seed = 7", "seed = ", "Invalid value"),
            (3, "sigma = 0.4", "sigma = -1", "latency sigma must be above 0 and at most 10, not -1"),
            (5, '["small", "large"]', '"small"', "models must be a list of names"),
            (9, '"slow"', '"fast"', "capacity beyond must be one of queue, slow, refuse, not 'fast'"),
            (7, "in_flight = 64", "", "capacity needs in_flight"),
            (12, "0.15", '"much"', "prices.small input must be a number, not 'much'"),
            (
                17,
                "requests_per_minute = 3000",
                "requests_per_minute = 0",
                "limit 1 requests_per_minute must be above 0",
            ),
            (21, "share = 0.1", "share = 10", "fault 1 share must be at least 0 and at most 1, not 10"),
            (22, "retry_after = 2", "retry_after = nan", "fault 1 retry_after must be a number"),
            (22, "retry_after = 2", "at = 0.5", "fault 1 at does not go with do = 'rate_limit'"),
            (19, 'do = "rate_limit"', "", "fault 1 needs do: what happens"),
            (26, 'do = "error"', 'do = "eror"', "fault 2 do must be one of delay, rate_limit"),
            (27, '"100-200"', '"200-100"', "fault 2 calls must be numbers from 1 or spans"),
            (28, "status = 503", "status = 200", "fault 2 status must be at least 400 and at most 599"),
            (29, "[0.1, 0.2]", "[0.2, 0.1]", "fault 2 after to must be at least 0.2, not 0.1"),
            (28, "status = 503", "statsu = 503", "fault 2 statsu is not known here"),
        ],
    )
    def test_what_is_refused_is_told_with_its_line(
        self, tmp_path: Path, line: int, old: str, new: str, message: str
    ) -> None:
        path = tmp_path / "script.toml"
        assert TOML.count(old) >= 1
        path.write_text(TOML.replace(old, new, 1))
        with pytest.raises(RequestError) as caught:
            read_script(path)
        assert str(caught.value).startswith(f"{path}:{line}: {message}"), caught.value
        assert caught.value.hint
        assert caught.value.exit_code == 2

    @pytest.mark.parametrize(
        ("text", "place", "message"),
        [
            ('{"seed": 1}\n{"seed"', 2, "no JSON"),
            ('{"seed": 1}\n\n[]', 3, "each line is an object"),
            ('{"seed": 1}\n{"seed": 2}', 2, "seed comes twice"),
            ('{"seed": 1}\n{"fault": {"do": "hang"}}\n{"fault": {"do": "hung"}}', 3, "fault 2 do must be one of"),
            ('{"seed": 1}\n{"capacity": {"in_flight": 0}}', 2, "capacity in_flight must be at least 1"),
            ('\n{"faults": []}', 2, "faults is not known here"),
        ],
    )
    def test_a_line_that_is_refused(self, tmp_path: Path, text: str, place: int, message: str) -> None:
        path = tmp_path / "script.jsonl"
        path.write_text(text)
        with pytest.raises(RequestError) as caught:
            read_script(path)
        assert str(caught.value).startswith(f"{path}:{place}: {message}"), caught.value

    @pytest.mark.parametrize("name", ["missing.toml", "."])
    def test_a_file_that_can_not_be_read(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(RequestError, match="cannot read the script"):
            read_script(tmp_path / name)

    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            ({"do": "reset_before", "model": "m"}, "fault 1 model is in the body"),
            ({"do": "truncated_json", "clean": 1}, "fault 1 clean must be true or false"),
            ({"do": "delay"}, "fault 1 needs seconds or times"),
            ({"do": "hang", "path": "/v1/models"}, "fault 1 path must be one of"),
            ({"do": "length", "path": "/v1/embeddings"}, "fault 1 do is nothing that embeddings have"),
            ({"do": "error", "message": "a\r\nb: c"}, "fault 1 message must be printable"),
            ({"do": "error", "retry_after": "1\n"}, "fault 1 retry_after must be printable"),
            ({"do": "delay", "seconds": {"seconds": 1, "median": 2}}, "fault 1 seconds needs one of"),
            (3, "fault 1 is no table"),
        ],
    )
    def test_a_mapping_is_refused_likewise(self, fault: Any, message: str) -> None:
        with pytest.raises(RequestError) as caught:
            TestServer({"fault": [fault]})
        assert str(caught.value).startswith(message)
