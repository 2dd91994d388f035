import socket

import pytest
from http_errors import LikeHttpx, makers
from hypothesis import given
from hypothesis import strategies as st

from stageflow.policies.breaker import ORDINARY, PROBATION_FAILURES, PROGRAMMING_ERRORS, SUSPECT, Breaker


def failing(breaker, *errors, clean_input=True, **more):
    return [breaker.failure(error, clean_input=clean_input, **more).kind for error in errors]


@pytest.mark.parametrize("make", makers())
@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_trips_at_once_and_is_counted_on(make, status):
    breaker = Breaker("generate")
    verdict = breaker.failure(make(status), clean_input=False)
    assert verdict.trips
    assert verdict.reason == f"stage generate: {status} from API"
    for _ in range(11):
        assert breaker.failure(make(status), clean_input=True).trips
    assert breaker.reason() == f"stage generate: {status} from API (12 in a row)"


def test_a_success_does_not_untrip_and_ends_the_row():
    breaker = Breaker("generate")
    failing(breaker, LikeHttpx(401), LikeHttpx(401))
    breaker.success()
    assert failing(breaker, LikeHttpx(401)) == ["trip"]
    assert breaker.tripped
    assert breaker.reason() == "stage generate: 401 from API (2 in a row)"


def test_a_refused_key_trips_after_successes_too():
    breaker = Breaker("generate")
    breaker.success()
    assert failing(breaker, LikeHttpx(401)) == ["trip"]


def test_only_the_cause_is_counted():
    breaker = Breaker("generate")
    assert failing(breaker, LikeHttpx(401), LikeHttpx(503), LikeHttpx(403)) == ["trip", "ordinary", "trip"]
    assert breaker.reason() == "stage generate: 401 from API"


def test_a_used_up_quota_trips():
    breaker = Breaker("generate")
    error = LikeHttpx(429, {}, {"error": {"code": "insufficient_quota"}})
    assert failing(breaker, error, error) == ["trip", "trip"]
    assert breaker.reason() == "stage generate: 429 from API: insufficient_quota (2 in a row)"


@pytest.mark.parametrize(
    "error", [LikeHttpx(429), LikeHttpx(500), LikeHttpx(404), ValueError(), KeyError("a")], ids=repr
)
def test_the_trouble_of_single_items_is_ordinary_however_often(error):
    breaker = Breaker("generate")
    assert set(failing(breaker, *[error] * 1000)) == {"ordinary"}
    assert breaker.reason() is None
    assert not breaker.tripped


def unresolved(number=socket.EAI_NONAME):
    error = ConnectionError("…")
    error.__cause__ = socket.gaierror(number, "…")
    error.host = "api.exmaple.com"
    return error


def test_an_unknown_host_trips_before_the_first_success_only():
    breaker = Breaker("generate")
    assert failing(breaker, unresolved(socket.EAI_AGAIN)) == ["ordinary"]
    assert breaker.failure(unresolved(), clean_input=True).reason == (
        "stage generate: cannot resolve host api.exmaple.com"
    )
    breaker = Breaker("generate")
    breaker.success()
    assert failing(breaker, unresolved()) == ["ordinary"]


def test_an_unknown_host_without_a_name():
    verdict = Breaker("generate").failure(socket.gaierror(socket.EAI_NONAME, "…"), clean_input=True)
    assert verdict.reason == "stage generate: cannot resolve host"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        ("1e9", "11574 days"),
        ("601", "10 minutes"),
        ("10000", "2 hours"),
        ("172800", "2 days"),
        ("1e300", "for ever"),
    ],
)
def test_a_wait_over_the_cap_trips(seconds, text):
    verdict = Breaker("generate").failure(LikeHttpx(429, {"retry-after": seconds}), clean_input=True)
    assert verdict.reason == f"stage generate: server asked to wait {text}"


def test_a_wait_up_to_the_cap_is_waited():
    assert failing(Breaker("generate"), LikeHttpx(503, {"retry-after": "600"})) == ["ordinary"]
    error = LikeHttpx(503, {"retry-after": "3"})
    verdict = Breaker("generate", max_retry_after=2).failure(error, clean_input=True)
    assert verdict.reason == "stage generate: server asked to wait 3 s"


def test_a_date_over_the_cap_trips_by_the_wall_clock_that_was_handed_in():
    error = LikeHttpx(503, {"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"})
    assert failing(Breaker("generate"), error) == ["ordinary"]
    assert failing(Breaker("generate"), error, wall_clock=0.0) == ["trip"]


@pytest.mark.parametrize("kind", PROGRAMMING_ERRORS)
def test_a_programming_error_that_hits_everything_is_the_jobs(kind):
    breaker = Breaker("generate")
    verdicts = failing(breaker, *[kind("…") for _ in range(12)])
    assert verdicts == ["suspect"] * 9 + ["trip"] * 3
    assert breaker.reason() == f"stage generate: {kind.__name__} in every call (12 in a row)"


def test_one_success_clears_the_suspects():
    breaker = Breaker("generate")
    assert breaker.on_probation
    assert breaker.failure(TypeError(), clean_input=True) is SUSPECT
    assert breaker.success(), "the first success ends the probation"
    assert not breaker.success()
    assert not breaker.on_probation
    assert all(breaker.failure(TypeError(), clean_input=True) is ORDINARY for _ in range(100))


def test_a_stand_in_above_excuses_a_programming_error():
    breaker = Breaker("generate")
    assert set(failing(breaker, *[TypeError()] * 100, clean_input=False)) == {"ordinary"}
    assert failing(breaker, TypeError()) == ["suspect"], "those that were excused count for nothing"


def test_attempts_at_one_item_are_one_failure():
    breaker = Breaker("generate")
    assert set(failing(breaker, *[TypeError()] * 100, final=False)) == {"ordinary"}
    assert failing(breaker, TypeError()) == ["suspect"]
    assert failing(breaker, LikeHttpx(401), final=False) == ["trip"]


def test_errors_of_several_classes_are_not_one_cause():
    breaker = Breaker("generate")
    errors = [TypeError, AttributeError, ModuleNotFoundError, ImportError]
    assert set(failing(breaker, *[kind() for kind in errors] * 9)) == {"suspect"}
    assert failing(breaker, TypeError()) == ["trip"]


ERRORS = st.sampled_from([ValueError(), TypeError(), NameError(), LikeHttpx(503), LikeHttpx(401), unresolved()])


@given(st.lists(st.one_of(st.none(), st.tuples(ERRORS, st.booleans(), st.booleans())), max_size=60))
def test_suspects_are_few_and_end_with_the_probation(events):
    breaker = Breaker("generate")
    suspects = trips = 0
    for event in events:
        if event is None:
            breaker.success()
            suspects = 0
            continue
        error, clean, final = event
        verdict = breaker.failure(error, clean_input=clean, final=final)
        suspects += verdict.kind == "suspect"
        trips += verdict.trips
        assert suspects == 0 or breaker.on_probation
        assert suspects <= 2 * (PROBATION_FAILURES - 1)
        assert bool(verdict.reason) == verdict.trips
    assert breaker.tripped == bool(trips) == (breaker.reason() is not None)
