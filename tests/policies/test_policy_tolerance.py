import pytest
from hypothesis import given
from hypothesis import strategies as st

from stageflow.errors import SettingError
from stageflow.policies.tolerance import FailureRate, Tolerance, parse_rate


def test_it_trips_when_more_than_the_limit_of_a_full_window_failed():
    rate = FailureRate(0.5, window=10)
    assert not any(rate.settled(True) for _ in range(9)), "tripped before the window was full"
    assert rate.settled(False)
    assert rate.reason() == "9 of the last 10 records failed, more than 50%"


def test_just_the_limit_is_allowed():
    rate = FailureRate(0.29)
    assert not any(rate.settled(number < 29) for number in range(100))  # 0.29 * 100 is a little less than 29
    rate = FailureRate(0.29)
    assert any(rate.settled(number < 30) for number in range(100))


def test_the_ends_of_the_range():
    always, never = FailureRate(0, window=3), FailureRate(1, window=3)
    assert [always.settled(failed) for failed in (True, False, False, False)] == [False, False, True, False]
    assert not any(never.settled(True) for _ in range(10))


@pytest.mark.parametrize(("limit", "window"), [(-0.1, 100), (1.1, 100), (float("nan"), 100), (0.5, 0)])
def test_a_rate_is_a_share_of_some_records(limit, window):
    with pytest.raises(SettingError):
        FailureRate(limit, window)


@given(st.lists(st.booleans(), max_size=100), st.integers(1, 20), st.integers(0, 100))
def test_it_counts_the_last_records_and_no_others(outcomes, window, percent):
    rate = FailureRate(percent / 100, window)
    for number, failed in enumerate(outcomes, start=1):
        last = outcomes[max(0, number - window) : number]
        assert rate.settled(failed) == (len(last) == window and sum(last) * 100 > percent * window)


@pytest.mark.parametrize(
    ("text", "failed", "total", "allowed"),
    [
        ("5", 5, 10, True),
        ("5", 6, 10**6, False),
        ("0", 0, 0, True),
        ("0", 1, 10, False),
        (" 7 ", 7, 7, True),
        ("2.5%", 25, 1000, True),
        ("2.5%", 26, 1000, False),
        ("0%", 0, 0, True),
        ("0.1%", 1, 1000, True),
        ("100%", 10, 10, True),
        ("29%", 29, 100, True),
        ("2.3%", 69, 3000, True),
        ("7 %", 7, 100, True),
    ],
)
def test_allowed_failures(text, failed, total, allowed):
    assert Tolerance.parse(text).allows(failed, total) is allowed


@pytest.mark.parametrize(
    "text", ["", "%", "-1", "-1%", "101%", "2.5", "nan%", "inf%", "1_0", "1_0%", "٣", "5%%", "a", "1e3", "9" * 5000]
)
def test_what_is_no_tolerance_is_refused(text):
    with pytest.raises(SettingError, match="a number of records or a percentage"):
        Tolerance.parse(text)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_percentage_is_exact(percent_tenths, total):
    percent_tenths %= 1001
    most = percent_tenths * total // 1000
    tolerance = Tolerance.parse(f"{percent_tenths / 10}%")
    assert tolerance.allows(most, total)
    assert not tolerance.allows(most + 1, total)


@pytest.mark.parametrize(
    ("text", "rate"), [("50%", 0.5), ("0.5", 0.5), ("1", 1.0), ("1%", 0.01), ("0", 0.0), ("100%", 1.0), (" .25 ", 0.25)]
)
def test_a_rate_is_a_percentage_or_a_share(text, rate):
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "50", "-0.1", "1.01", "101%", "nan", "inf", "half", "0.5 %%", "5_0%", "%"])
def test_what_is_no_rate_is_refused(text):
    with pytest.raises(SettingError, match="a percentage or a share"):
        parse_rate(text)
