import asyncio
import copy
import json
import pickle

import pytest
from http_errors import LikeHttpx, makers
from hypothesis import example, given
from hypothesis import strategies as st

from stageflow.errors import ContextConflict, HandlerFailed, ItemError, RecordError, ResultError, SettingError
from stageflow.policies import Retry
from stageflow.policies.retry import retry_of, retryable_by_default

UNIFORM = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3", None, float("nan")])
def test_attempts_are_a_positive_integer(value):
    with pytest.raises(SettingError, match="attempts must be a positive integer"):
        Retry(value)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "1", True, None, 10**400])
def test_waits_are_finite_seconds(value):
    with pytest.raises(SettingError, match="base must be seconds"):
        Retry(3, base=value)
    with pytest.raises(SettingError, match="cap must be seconds"):
        Retry(3, cap=value)


def test_the_cap_is_no_less_than_the_base():
    with pytest.raises(SettingError, match="at least base"):
        Retry(3, base=61)
    assert Retry(3, base=61, cap=61).cap == 61


@pytest.mark.parametrize(
    "on",
    [
        (),
        {},
        "ValueError",
        3,
        [ValueError],
        int,
        (ValueError, 3),
        {ValueError: 0},
        {ValueError: True},
        {"ValueError": 1},
    ],
    ids=repr,
)
def test_on_is_a_class_some_classes_a_function_or_a_mapping(on):
    with pytest.raises(SettingError, match="on must"):
        Retry(3, on=on)


def test_a_number_is_a_policy_and_none_is_none():
    assert retry_of(None) is None
    assert retry_of(3) == Retry(attempts=3)
    policy = Retry(attempts=5)
    assert retry_of(policy) is policy
    for wrong in (True, 0, 2.5, "3"):
        with pytest.raises(SettingError):
            retry_of(wrong)


@pytest.mark.parametrize("on", [None, ValueError, (ValueError, OSError), {ValueError: 2}], ids=repr)
def test_a_policy_is_a_value(on):
    policy = Retry(3, on=on)
    assert pickle.loads(pickle.dumps(policy)) == policy == copy.deepcopy(policy)
    assert hash(policy) == hash(copy.deepcopy(policy))


def test_a_mapping_is_taken_as_it_was():
    rules = {ValueError: 2}
    policy = Retry(3, on=rules)
    rules[ValueError] = 9
    assert policy.on == {ValueError: 2}


def broken_json():
    try:
        json.loads("{")
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        Exception(),
        broken_json(),
        OSError(),
        TimeoutError(),
        ConnectionResetError(),
        KeyError("choices"),
        RuntimeError(),
        HandlerFailed("cancelled"),
        ItemError("…"),
        ExceptionGroup("tasks", [OSError(), ValueError()]),
    ],
    ids=repr,
)
def test_what_another_call_may_mend(error):
    assert retryable_by_default(error)


@pytest.mark.parametrize(
    "error",
    [
        TypeError(),
        NameError(),
        UnboundLocalError(),
        AttributeError(),
        ImportError(),
        ModuleNotFoundError(),
        NotImplementedError(),
        MemoryError(),
        RecordError("…"),
        ResultError("…"),
        ContextConflict("…"),
        KeyboardInterrupt(),
        SystemExit(),
        asyncio.CancelledError(),
        ExceptionGroup("tasks", [OSError(), TypeError()]),
        LikeHttpx(429, {}, {"error": {"code": "insufficient_quota"}}),
    ],
    ids=repr,
)
def test_what_no_call_mends(error):
    assert not retryable_by_default(error)


@pytest.mark.parametrize("make", makers())
def test_statuses_that_cannot_improve_are_not_tried_again(make):
    for status in (400, 401, 403, 404, 405, 413, 415, 422):
        assert not retryable_by_default(make(status))
    for status in (402, 408, 409, 425, 429, 500, 502, 503, 504, 529):
        assert retryable_by_default(make(status))


def test_attempts_count_the_first():
    assert [Retry(3).wants_another(OSError(), attempt) for attempt in (1, 2, 3, 4)] == [True, True, False, False]
    assert not Retry(1).wants_another(OSError(), 1)
    assert not Retry(3).wants_another(TypeError(), 1)


@pytest.mark.parametrize(
    "on",
    [LookupError, (OSError, LookupError), lambda error: isinstance(error, LookupError)],
    ids=["class", "classes", "predicate"],
)
def test_on_replaces_the_default(on):
    policy = Retry(3, on=on)
    assert policy.wants_another(KeyError(), 2)
    assert not policy.wants_another(KeyError(), 3)
    assert not policy.wants_another(ValueError(), 1)


def test_on_may_accept_what_the_default_does_not():
    assert Retry(3, on=Exception).wants_another(TypeError(), 1)
    assert Retry(3, on=lambda error: True).wants_another(LikeHttpx(404), 1)


def test_a_predicate_that_raises_is_told_on_the_items_own_error():
    error = ValueError("the items own")
    assert not Retry(3, on=lambda error: error.status > 500).wants_another(error, 1)
    assert error.__notes__ == ["the function given as retry on= raised AttributeError; not tried again"]


def attempts_of(policy, error):
    return next(attempt for attempt in range(1, 100) if not policy.wants_another(error, attempt))


def test_of_the_rules_per_class_the_nearest_counts_and_the_default_holds_for_the_rest():
    policy = Retry(4, on={OSError: 6, ConnectionError: 2, ConnectionResetError: 1, TypeError: 3})
    assert attempts_of(policy, FileNotFoundError()) == 6
    assert attempts_of(policy, ConnectionRefusedError()) == 2
    assert attempts_of(policy, ConnectionResetError()) == 1
    assert attempts_of(policy, TypeError()) == 3
    assert attempts_of(policy, ValueError()) == 4
    assert attempts_of(policy, NameError()) == 1


def test_the_nearest_class_does_not_depend_on_the_order_of_the_rules():
    assert attempts_of(Retry(4, on={ConnectionError: 2, OSError: 6}), ConnectionRefusedError()) == 2


def test_the_wait_doubles_up_to_the_cap():
    policy = Retry(20, base=0.5, cap=60)
    longest = [policy.delay(attempt, 0.5) * 2 for attempt in range(1, 10)]
    assert longest == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    assert policy.delay(3, 0.0) == 0.0


@given(st.integers(1, 10**30), UNIFORM, st.floats(0, 1e308), st.floats(0, 1e308))
@example(10**30, 0.5, 0.0, 0.0)
@example(2000, 0.5, 5e-324, 60.0)
def test_no_attempt_is_too_many_to_wait_for(attempt, uniform, one, other):
    policy = Retry(3, base=min(one, other), cap=max(one, other))
    wait = policy.delay(attempt, uniform)
    assert 0 <= wait <= policy.cap
    if attempt <= 500 and policy.base < 1e100:
        assert wait == uniform * min(policy.cap, policy.base * 2 ** (attempt - 1))


@given(st.integers(1, 50), UNIFORM, st.floats(1e-3, 1e9))
def test_what_the_server_asks_for_is_the_least_and_not_much_less_than_the_most(attempt, uniform, asked):
    wait = Retry(3).delay(attempt, uniform, retry_after=asked)
    assert asked <= wait <= asked + max(0.5, asked / 10)
    assert Retry(3, base=0).delay(attempt, 0.5, retry_after=asked) > asked


@pytest.mark.parametrize(("attempt", "uniform"), [(0, 0.5), (1, 1.0), (1, -0.1), (1, float("nan"))])
def test_a_broken_promise_of_the_caller_is_an_assertion(attempt, uniform):
    with pytest.raises(AssertionError):
        Retry(3).delay(attempt, uniform)
