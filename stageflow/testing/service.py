"""The service behind the test server: what it says to a request, after how long, and what it remembers of it.

It knows neither sockets nor a clock; times come in as numbers. What happens to a call, in this order:

1. The call is counted, and its fate read from the script. A fault without an answer (an error, a hang) happens.
2. A request that is wrong is told so: 400, 404.
3. The rate limits are asked, then the capacity; either may refuse.
4. The answer is made, with its fault if it has one, and takes its latency.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from math import ceil
from typing import Any, Final

import orjson

from stageflow.testing.answers import answer_text
from stageflow.testing.asked import Refused, understood
from stageflow.testing.capacity import Capacity, Limit, LimitRule
from stageflow.testing.faults import Call, Draws, Fate, Fates, Fault
from stageflow.testing.replies import Delivery, Reply, deliver, error_reply, limit_headers, wait_headers
from stageflow.testing.script import PATHS, Script
from stageflow.testing.tally import Seen, Stats
from stageflow.testing.wire import Head, http_date

__all__ = ["Service", "Turn"]

_SLACK: Final = 0.005
"""A call that comes so much too early is not: timers of event loops are no better."""
_UNDER_WAY: Final = 0.25
_NAMES: Final = 1000
"""So many models and keys are told apart."""
_UNANSWERED: Final = {
    "rate_limit": (429, "requests", "rate_limit_exceeded", "Rate limit reached for requests"),
    "quota": (429, "insufficient_quota", "insufficient_quota", "You exceeded your current quota"),
    "unauthorized": (401, "invalid_request_error", "invalid_api_key", "Incorrect API key provided"),
    "error": (500, "server_error", None, "The server had an error while processing your request"),
}
_BROKEN: Final = frozenset(
    {"reset_before", "reset_after", "reset_body", "cut_body", "truncated_json", "invalid_json", "content_type"}
    | {"stall", "error_event", "no_done"}
)
"""Outcomes of which no client can know the usage, or should look for it."""
_GOOD: Final = ("ok", "slow_body")
"""Outcomes after which nobody should ask again."""


@dataclass(slots=True)
class Turn:
    """A call between its arrival and its end.

    Args:
        delay: Seconds until the delivery begins.
        counted: Not so for what is no call of the service: ``/health`` and the like.
        outcome: What becomes of it, if the client stays to the end.
        waits: How long the answer asks to be left alone, seconds.
    """

    delivery: Delivery
    delay: float = 0.0
    counted: bool = True
    outcome: str = "ok"
    model: str = ""
    caller: str = ""
    path: str = ""
    idempotency_key: str = ""
    identity: Any = None
    answered: bool = False
    tokens_in: int = 0
    tokens_out: int = 0
    waits: float = 0.0
    in_capacity: bool = False


class Service:
    """Answers requests by a script.

    Args:
        seed: Instead of the script's.
        clock: Seconds since 1970, for what a server says of the time of day.
    """

    def __init__(self, script: Script, seed: int | None = None, clock: Callable[[], float] = time.time) -> None:
        self.script = script
        self.seed = seed if seed is not None else script.seed or 0
        self.stats = Stats(script.prices)
        self._clock = clock
        self._draws = Draws(self.seed)
        self._fates = Fates(script.faults, self._draws)
        self._limits = [Limit(rule) for rule in script.limits]
        self._capacity = None if script.capacity is None else Capacity(script.capacity)
        self._numbers: Counter[Any] = Counter()
        self._callers: dict[str, str] = {}
        self._models: set[str] = set()
        self._keys = Seen()
        self._came = Seen()
        self._answered = Seen()
        self._allowed = Seen()
        self._holds: dict[tuple[str, str, str], tuple[float, float]] = {}

    # What the connection asks

    def resets(self, head: Head) -> bool:
        """Whether the request is to be reset before its body is read; it is counted then."""
        path = _path_of(head.path)
        if not self._fates.resets_before or path not in PATHS or head.method != "POST":
            return False
        if self.script.draw_by == "body":
            return False  # it is not known yet; the fate is met when it is
        number, of_path = self._numbers[""] + 1, self._numbers[path] + 1
        identity = self._identity(head, b"", number, count=False)
        if not self._fates.at_head(Call(identity=identity, path=path, number=number, of_path=of_path)):
            return False
        self._numbers[""] += 1
        self._numbers[path] += 1
        self._identity(head, b"", number, count=True)
        self._note_key(head.idempotency_key)
        self.stats.calls += 1
        self.stats.count("reset_before", "", self._caller(head), False, 0, 0)
        return True

    def begin(self, head: Head, body: bytes, now: float) -> Turn:
        """A request has arrived: what it is answered, and when. It is to :meth:`end`."""
        path = _path_of(head.path)
        if path not in PATHS:
            return self._about(head, path)
        if head.method != "POST":
            said = error_reply(405, "invalid_request_error", None, f"{path} wants POST", "Allow: POST\r\n")
            return Turn(self._delivery(said, head), counted=False)
        turn = Turn(Delivery(), path=path, idempotency_key=head.idempotency_key, caller=self._caller(head))
        stats = self.stats
        stats.calls += 1
        stats.in_flight += 1
        stats.most_in_flight = max(stats.most_in_flight, stats.in_flight)
        turn.identity = head.idempotency_key or hash((path, body))
        try:
            request: Any = orjson.loads(body)
        except orjson.JSONDecodeError:
            request = None
        model = request.get("model") if isinstance(request, dict) else None
        turn.model = self._model(model) if isinstance(model, str) else ""
        self._note_key(head.idempotency_key)
        self._look_back(turn, now)
        call = self._call(head, body, path, turn.model)
        fate = self._fates.of(call)
        try:
            self._answer(turn, head, request, call, fate, now)
        except Refused as refused:
            turn.outcome, turn.answered = refused.outcome, False
            turn.delivery = self._delivery(refused.reply, head)
        return turn

    def end(self, turn: Turn, now: float, *, whole: bool) -> None:
        """The answer of a turn is out, or its client has gone before."""
        if not turn.counted:
            return
        stats = self.stats
        stats.in_flight -= 1
        if turn.in_capacity:
            assert self._capacity is not None
            self._capacity.end()
        struck = turn.outcome in _BROKEN or turn.outcome == "hang"
        outcome = turn.outcome if whole or struck else "abandoned"
        paid = whole and turn.answered and not struck
        stats.count(outcome, turn.model, turn.caller, paid, turn.tokens_in, turn.tokens_out)
        if paid and outcome in _GOOD and turn.idempotency_key:
            if turn.idempotency_key in self._answered:
                stats.duplicates += 1
            self._answered.note(turn.idempotency_key, now)
        if turn.waits and whole:
            stats.retry_after_sent += 1
            self._allowed.note(turn.identity, now + turn.waits)
            place = (turn.caller, turn.path, turn.model)
            since, until = self._holds.get(place, (now, 0.0))
            self._holds[place] = (since if until > now else now, max(until, now + turn.waits))

    def answer(self, prompt: str, form: Mapping[str, Any] | None = None) -> str:
        """What a chat is answered whose messages say ``prompt``; see :func:`~stageflow.testing.answers.answer_text`."""
        return answer_text(prompt, seed=self.seed, tokens=self.script.answer_tokens, form=form)

    # Who calls

    def _call(self, head: Head, body: bytes, path: str, model: str) -> Call:
        numbers = self._numbers
        for name in ("", path, ("", model), (path, model)):
            numbers[name] += 1
        return Call(
            identity=self._identity(head, body, numbers[""], count=True),
            path=path,
            model=model,
            number=numbers[""],
            of_path=numbers[path],
            of_model=numbers["", model],
            of_both=numbers[path, model],
        )

    def _identity(self, head: Head, body: bytes, number: int, *, count: bool) -> str:
        """What the draws of a call go by: the same in every run of the same calls."""
        name = ""
        if self.script.draw_by == "key":
            name = head.idempotency_key
        elif self.script.draw_by == "body":
            name = blake2b(body, digest_size=16).hexdigest()
        if not name:
            return f"#{number}"
        came = self._came.get(name, 0) + 1
        if count:
            self._came.note(name, came)
        return f"{name} {came:g}"

    def _note_key(self, key: str) -> None:
        if key:
            self.stats.repeats += key in self._keys
            self._keys.note(key, 1)

    def _caller(self, head: Head) -> str:
        name = self._callers.get(head.authorization)
        if name is None:
            if not head.authorization:
                return "no key"
            if len(self._callers) >= _NAMES:
                return "other keys"
            name = self._callers[head.authorization] = f"key {len(self._callers) + 1}"
        return name

    def _model(self, name: str) -> str:
        if name not in self._models:
            if len(self._models) >= _NAMES:
                return "other models"
            self._models.add(name)
        return name

    def _look_back(self, turn: Turn, now: float) -> None:
        """Count a call that comes before it, or its caller, was allowed to."""
        if not self._holds:
            return
        if now < self._allowed.get(turn.identity, 0.0) - _SLACK:
            self.stats.retry_after_ignored += 1
        since, until = self._holds.get((turn.caller, turn.path, turn.model), (0.0, 0.0))
        if since + _UNDER_WAY < now < until - _SLACK:
            self.stats.during_retry_after += 1

    # What is said

    def _answer(self, turn: Turn, head: Head, request: Any, call: Call, fate: Fate, now: float) -> None:
        fault = fate.fault
        if fault is not None and self._ends_it(turn, head, fault, call):
            return
        made = understood(turn.path, request, self.script, self.seed)
        turn.tokens_in = made.tokens_in
        turn.tokens_out = made.tokens_out
        headers = self._limited(turn, now)
        latency = self.script.latency.draw(self._draws, "latency", call.identity)
        seconds = latency * fate.times + fate.seconds
        if self._capacity is not None:
            taken = self._capacity.begin(now, seconds)
            if taken is None:
                turn.tokens_in = turn.tokens_out = 0
                said = error_reply(429, "requests", "rate_limit_exceeded", "The service is at its capacity")
                raise Refused("over_capacity", said)
            turn.in_capacity, seconds = True, taken
        reply = made.reply(call.number, int(self._wall()), fault)
        if fault is not None:
            turn.outcome = fault.do
        turn.tokens_in, turn.tokens_out = made.tokens_in, made.tokens_out
        turn.answered = True
        reply.headers = f"x-request-id: req_{call.number}\r\n{headers}"
        turn.delay = seconds
        if fault is not None and fault.do == "reset_after":
            if fault.after is not None:
                turn.delay = fault.after.draw(self._draws, "after", call.identity)
            turn.delivery = Delivery(ending="reset")
        else:
            turn.delivery = self._delivery(reply, head, fault)

    def _ends_it(self, turn: Turn, head: Head, fault: Fault, call: Call) -> bool:
        """Let a fault happen that leaves nothing to be answered."""
        if fault.do in ("hang", "reset_before"):
            turn.outcome = fault.do
            turn.delivery = Delivery(ending="hang" if fault.do == "hang" else "reset")
            return True
        if fault.do not in _UNANSWERED:
            return False
        turn.outcome = fault.do
        status, kind, code, message = _UNANSWERED[fault.do]
        headers = f"x-request-id: req_{call.number}\r\n"
        if isinstance(fault.retry_after, str):
            headers += f"Retry-After: {fault.retry_after}\r\n"
        elif fault.retry_after is not None:
            headers += self._ask_to_wait(turn, fault.retry_after, fault.retry_after_as)
        if fault.do == "error":
            status, kind = fault.status, "server_error" if fault.status >= 500 else "invalid_request_error"
        reply = error_reply(status, kind, fault.code or code, fault.message or message, headers)
        turn.delivery = self._delivery(reply, head)
        if fault.after is not None:
            turn.delay = fault.after.draw(self._draws, "after", call.identity)
        return True

    def _ask_to_wait(self, turn: Turn, seconds: float, way: str) -> str:
        wall = self._wall()
        if way != "none":
            turn.waits = ceil(seconds * 1000) / 1000 if way == "ms" else float(ceil(seconds))
        if way == "date":
            # By the date alone a client may come when that second begins, which is sooner than so many seconds.
            turn.waits = max(0.0, turn.waits - wall % 1.0)
        return wait_headers(seconds, way, wall)

    def _limited(self, turn: Turn, now: float) -> str:
        """The headers of the rate limits that a call falls under, which it has taken its part of."""
        tokens = turn.tokens_in + turn.tokens_out
        limits = [limit for limit in self._limits if limit.rule.model in (None, turn.model)]
        if not limits:
            return ""
        waits = [limit.wait(now, tokens) for limit in limits]
        worst = max(range(len(limits)), key=lambda place: waits[place][0])
        seconds, of = waits[worst]
        if seconds > 0:
            turn.tokens_in = turn.tokens_out = 0
            raise Refused("limited", self._over_limit(turn, limits[worst], seconds, of))
        for limit in limits:
            limit.take(tokens)
        return limit_headers(limits[0])

    def _over_limit(self, turn: Turn, limit: Limit, seconds: float, of: str) -> Reply:
        rule: LimitRule = limit.rule
        headers = limit_headers(limit) + self._ask_to_wait(turn, seconds, rule.retry_after_as)
        message = f"Rate limit reached for {turn.model}: too many {of} a minute. Please try again in {seconds:.3f}s."
        return error_reply(429, of, "rate_limit_exceeded", message, headers)

    def _about(self, head: Head, path: str) -> Turn:
        """What is asked of the server rather than of the service."""
        if head.method != "GET" or path not in ("health", "stats", "models"):
            message = f"Unknown request: {head.method} {head.path}"
            reply = error_reply(404, "invalid_request_error", "unknown_url", message)
        elif path == "health":
            reply = Reply(200, b'{"status":"ok"}')
        elif path == "stats":
            reply = Reply(200, orjson.dumps(self.stats.as_dict(), option=orjson.OPT_INDENT_2) + b"\n")
        else:
            names = self.script.models or sorted(self._models) or ["any"]
            listed = [{"id": name, "object": "model", "created": 0, "owned_by": "stageflow"} for name in names]
            reply = Reply(200, orjson.dumps({"object": "list", "data": listed}))
        return Turn(self._delivery(reply, head), counted=False)

    def _delivery(self, reply: Reply, head: Head, fault: Fault | None = None) -> Delivery:
        reply.headers += f"Date: {http_date(int(self._wall()))}\r\n"
        return deliver(reply, fault, close=head.close, token_seconds=self.script.token_seconds)

    def _wall(self) -> float:
        return self._clock() + self.script.clock_offset


def _path_of(path: str) -> str:
    return path.removeprefix("/").removeprefix("v1/").removesuffix("/")
