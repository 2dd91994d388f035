"""What is read off the headers in which services tell of their limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stageflow.llm.limits import ProviderLimit, limits_of

WALL = 1_800_000_000.0  # 2027-01-15T08:00:00Z
DATE = "Fri, 15 Jan 2027 08:00:00 GMT"


def read(headers: dict[str, str]) -> ProviderLimit | None:
    """Of an answer that took 2 s."""
    return limits_of(headers, began=10.0, ended=12.0, wall_clock=WALL, scope="s")


def requests(headers: dict[str, str]) -> tuple[float | None, float | None, float | None]:
    told = read(headers)
    assert told is not None
    assert (told.began, told.scope) == (10.0, "s")
    return told.requests_remaining, told.requests_reset, told.requests_limit


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("20ms", 0.02),
        ("6m0s", 360.0),
        ("1h2m3.5s", 3723.5),
        ("1m0.25s", 60.25),
        ("0s", 0.0),
        ("2d", 172_800.0),
        ("59.7", 59.7),
        (" 7 ", 7.0),
        ("500us", 0.0005),
        ("1800000005", 5.0 + 2.0),  # a moment, 5 s after the answer
        ("2027-01-15T08:00:30Z", 30.0 + 2.0),
        ("2027-01-15T09:00:30+01:00", 30.0 + 2.0),
        ("2027-01-15T07:00:00Z", 0.0 + 2.0),
    ],
)
def test_resets_are_durations_seconds_or_moments(text: str, seconds: float) -> None:
    headers = {"x-ratelimit-remaining-requests": "5", "x-ratelimit-reset-requests": text}
    assert requests(headers) == (5.0, pytest.approx(seconds), None)


@pytest.mark.parametrize("text", ["", "soon", "6m 0s", "-1", "nan", "inf", "1s1", "2027-01-15T08:00:30", "m", "1x"])
def test_what_has_no_readable_end_is_not_said(text: str) -> None:
    assert read({"x-ratelimit-remaining-requests": "5", "x-ratelimit-reset-requests": text}) is None


def test_a_moment_is_by_the_clock_of_the_service() -> None:
    headers = {
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-requests-reset": "2027-01-15T08:00:30Z",
        "date": "Fri, 15 Jan 2027 08:00:20 GMT",
    }
    assert requests(headers) == (0.0, 12.0, 50.0)
    assert requests(headers | {"date": "never"}) == (0.0, 32.0, 50.0)


def test_calls_and_tokens_are_told_apart() -> None:
    told = read(
        {
            "x-ratelimit-limit-requests": "500",
            "x-ratelimit-remaining-requests": "499",
            "x-ratelimit-reset-requests": "120ms",
            "x-ratelimit-limit-tokens": "30000",
            "x-ratelimit-remaining-tokens": "0",
            "x-ratelimit-reset-tokens": "6m0s",
        }
    )
    assert told == ProviderLimit(
        began=10.0,
        scope="s",
        requests_remaining=499,
        requests_reset=0.12,
        requests_limit=500,
        tokens_remaining=0,
        tokens_reset=360,
        tokens_limit=30000,
    )


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"ratelimit-limit": "100", "ratelimit-remaining": "7", "ratelimit-reset": "30"}, (7, 30, 100)),
        ({"ratelimit-limit": "100, 100;w=60", "ratelimit-remaining": "7", "ratelimit-reset": "30"}, (7, 30, 100)),
        ({"ratelimit": "limit=100, remaining=7, reset=30"}, (7, 30, 100)),
        ({"ratelimit": '"default";r=7;t=30', "ratelimit-policy": '"default";q=100;w=60'}, (7, 30, 100)),
        ({"ratelimit": '"default";r=7;t=30'}, (7, 30, None)),
        ({"x-ratelimit-limit": "60", "x-ratelimit-remaining": "59", "x-ratelimit-reset": "1800000060"}, (59, 62, 60)),
    ],
)
def test_the_fields_of_the_draft_and_their_forerunners(headers: dict[str, str], said: tuple[float, ...]) -> None:
    assert requests(headers) == said


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-ratelimit-limit-requests": "5"},
        {"x-ratelimit-remaining-requests": "5"},
        {"x-ratelimit-remaining-requests": "five", "x-ratelimit-reset-requests": "1s"},
        {"x-ratelimit-remaining-requests": "-1", "x-ratelimit-reset-requests": "1s"},
        {"ratelimit": "remaining=7"},
        {"ratelimit": '"default";r=;t='},
    ],
    ids=repr,
)
def test_what_is_not_said_is_nothing(headers: dict[str, str]) -> None:
    assert read(headers) is None


NAMES = [
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-ratelimit-limit-requests",
    "anthropic-ratelimit-tokens-remaining",
    "anthropic-ratelimit-tokens-reset",
    "ratelimit",
    "ratelimit-policy",
    "date",
]
TEXTS = st.one_of(st.text(max_size=300), st.sampled_from(["1s", "5", DATE, "2027-01-15T08:00:30Z", '"a";r=1;t=2']))


@given(st.dictionaries(st.sampled_from(NAMES), TEXTS))
def test_whatever_a_service_sends_is_no_error_and_no_number_is_out_of_range(headers: dict[str, str]) -> None:
    told = read(headers)
    for name in ("requests", "tokens") if told is not None else ():
        left, reset = getattr(told, f"{name}_remaining"), getattr(told, f"{name}_reset")
        assert (left is None) == (reset is None)
        assert left is None or (left >= 0 and reset >= 0)
