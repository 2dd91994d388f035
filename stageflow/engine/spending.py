"""What calls cost, and the money that is set aside for those in flight.

* A stage whose calls cost money has a :class:`Purse` where the run has a budget. What a call may cost is taken last,
  when it could start at once: after the pause that a service asked for and after the permit of its rate limit. So
  nothing is set aside for calls that only wait, and no permit is used up by waiting for money.
* A call that ends tells what it used, or it counts in full: what a service charges for a call that was cut short or
  that broke off is not known here.
* Where the next call does not fit, it waits for those in flight to give back what they did not use. When none of them
  can, the run is stopped: what was accepted goes on as far as it can without that stage and those before it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import index
from typing import NamedTuple

from stageflow.commit import Spend
from stageflow.counters import StageCounters
from stageflow.errors import BudgetSpent, RunStopped
from stageflow.money import Price, shown
from stageflow.plan import Plan
from stageflow.policies.budget import Budget
from stageflow.pricing import most_per_call, price_of
from stageflow.stage import Stage

__all__ = ["Purse", "Report", "Spending", "Till", "Usage"]


class Report(NamedTuple):
    """What a handler told of its call; ``either`` are tokens of which it did not say what kind they are."""

    input: int
    output: int
    either: int
    model: str | None

    @classmethod
    def of(cls, tokens: int | None, input_tokens: int, output_tokens: int, model: str | None) -> Report:
        """Of what ``call.report`` is given, where ``tokens`` are all of them.

        Raises:
            TypeError: A number is no whole one.
            ValueError: It is below 0.
        """
        total, own, made = index(tokens or 0), index(input_tokens), index(output_tokens)
        if total < 0 or own < 0 or made < 0:
            raise ValueError("a call can't have used less than no tokens")
        return cls(own, made, max(0, total - own - made), model)

    @property
    def tokens(self) -> int:
        return self.input + self.output + self.either


class Usage:
    """What is known of a call that has begun.

    Attributes:
        paid: Money is set aside for it.
        cut: It was ended from outside, and may have used more than it told.
        uncalled: The service was never called.
    """

    __slots__ = ("cut", "paid", "reports", "uncalled")

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.paid = self.cut = self.uncalled = False


class Till:
    """The money of a run.

    Args:
        budget: What it may spend; ``None``: any amount.
        before: What earlier runs have spent.
        stop, warn: Stops the run; tells the user something.

    Attributes:
        purses: By stage, where there is a budget and its calls cost money.
        changed: Called when something of a budget was spent.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        budget: Budget | None,
        before: Spend | None = None,
        stop: Callable[[RunStopped], None],
        warn: Callable[[str], None],
    ) -> None:
        before = before or Spend()
        self.prices: Mapping[str, Price] = plan.prices
        self.budget = budget
        self.known = before.known
        self.unsure = before.unsure
        self.stop = stop
        self.changed: Callable[[], None] = lambda: None
        self._plan = plan
        self._warn = warn
        self._told: set[str] = set()
        self._written = Spend(self.known, self.unsure)
        self.purses: dict[str, Purse] = {}
        for name, stage in plan.stages.items() if budget is not None else ():
            if (most := most_per_call(stage, plan.prices)) is not None:
                self.purses[name] = Purse(name, self, most)

    def take_spend(self) -> Spend | None:
        """What was spent over all runs, where that is news; what is in flight may have cost what is set aside."""
        reserved = self.budget.reserved if self.budget is not None else 0
        now = Spend(self.known, self.unsure + reserved)
        if now == self._written:
            return None
        self._written = now
        return now

    def tell(self, message: str) -> None:
        """Tell the user something once."""
        if message not in self._told:
            self._told.add(message)
            self._warn(message)

    def add(self, reserved: int, known: int, unsure: int) -> None:
        """A call has ended."""
        self.known += known
        self.unsure += unsure
        if self.budget is not None:
            self.budget.settle(reserved, known + unsure)
            self.look()
            self.changed()

    def look(self) -> None:
        """Let those go on who waited for money that is there now, and stop the run where none will come."""
        for purse in self.purses.values():
            if purse.waiting:
                if self.is_hopeless(purse.most):
                    self.run_out(purse)
                else:
                    purse.wake()

    def is_hopeless(self, amount: int) -> bool:
        """Whether no call in flight can give back enough for that.

        One that waits for others to take what it yields may never end before they have money. It might, where they
        wait for something else as well; but a run that is stopped a little early can go on, one that hangs can't.
        """
        budget = self.budget
        assert budget is not None, "money is short without a budget"
        stuck = sum(purse.stuck * purse.most for purse in self.purses.values())
        return not budget.fits(amount) and (budget.is_beyond(amount) or budget.reserved <= stuck)

    def run_out(self, purse: Purse) -> None:
        """There is too little money for another call of a stage."""
        budget = self.budget
        assert budget is not None, "money has run out without a budget"
        left = budget.total - budget.spent if budget.is_beyond(purse.most) else budget.left
        but_for = f"is spent but for {shown(left)}" if left > 0 else "is spent"
        self.stop(
            BudgetSpent(
                f"the budget of {shown(budget.total)} {but_for}, and a call of "
                f'"{purse.name}" may cost {shown(purse.most)}',
                hint="run again with a higher budget",
            )
        )
        # What comes from the stages before it would only wait for it: money for nothing.
        for name in (purse.name, *self._plan.ancestors[purse.name]):
            if name in self.purses:
                self.purses[name].bar()


class Purse:
    """Sets money aside for the calls of one stage.

    Args:
        most: What a call may cost at the most.

    Attributes:
        bar: Lets no call of the stage start any more.
        stuck: Calls that can't end before other stages have gone on.
        waiting: Those who wait for money, in the order of coming.
    """

    def __init__(self, name: str, till: Till, most: int) -> None:
        assert till.budget is not None, "a purse without a budget"
        self.name = name
        self.most = most
        self.stuck = 0
        self.bar: Callable[[], None] = lambda: None
        self.waiting: deque[asyncio.Future[None]] = deque()
        self._till = till
        self._budget = till.budget

    def fits(self) -> bool:
        """Whether there is money for a call."""
        return self._budget.fits(self.most)

    def take(self) -> bool:
        """Set the money for one call aside, if it is there."""
        return self._budget.reserve(self.most)

    def give_back(self) -> None:
        """The call is not made."""
        self._budget.settle(self.most, 0)
        self._till.look()

    async def wait(self) -> None:
        """Wait until there may be money for a call, or it is clear that there will be none."""
        if self._till.is_hopeless(self.most):
            self._till.run_out(self)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self.waiting:
                self.waiting.remove(turn)
            else:
                self._till.look()  # what it was woken for is for the next one
            raise

    def wake(self, everybody: bool = False) -> None:
        """Let as many look again as there is money for."""
        places = len(self.waiting) if everybody or not self.most else max(0, self._budget.left // self.most)
        for _ in range(min(places, len(self.waiting))):
            turn = self.waiting.popleft()
            if not turn.done():
                turn.set_result(None)

    def hold_up(self, by: int) -> None:
        """So many more calls wait for other stages."""
        self.stuck += by
        if by > 0:
            self._till.look()


class Spending:
    """The account of what the calls of one stage cost.

    Attributes:
        bar: Lets no call of the stage start any more.
    """

    def __init__(self, stage: Stage, till: Till, counters: StageCounters) -> None:
        self._stage = stage
        self._till = till
        self._counters = counters
        self.purse = till.purses.get(stage.name)
        self.bar: Callable[[], None] = lambda: None

    def settle(self, used: Sequence[Usage]) -> int | None:
        """A call has ended; ``used`` tells of it, item by item.

        Returns:
            The tokens that were told of; ``None``: nothing was told.
        """
        counters = self._counters
        reports = used[0].reports if len(used) == 1 else [report for usage in used for report in usage.reports]
        tokens = 0
        for own, made, either, _ in reports:
            counters.input_tokens += own
            counters.output_tokens += made
            tokens += own + made + either
        counters.tokens += tokens
        if self._till.prices:
            self._settle_money(used, reports)
        return tokens if reports else None

    def _settle_money(self, used: Sequence[Usage], reports: Sequence[Report]) -> None:
        counters, till = self._counters, self._till
        known, unsure, unpriced = self._cost_of(reports)
        paid = self.purse is not None and any(usage.paid for usage in used)
        held = self.purse.most if self.purse is not None and paid else 0
        if paid:
            uncalled = not reports and all(usage.uncalled for usage in used)
            if not uncalled and (not reports or unpriced or any(usage.cut for usage in used)):
                unsure = max(unsure, held - known)
                counters.untold += not reports
            elif known + unsure > held:
                self._tell_over(known + unsure, held)
        elif self.purse is not None:
            known = unsure = 0  # it comes late, of a call that was given up, and that was counted in full
        elif known + unsure:
            self._refuse_unreserved()
        counters.cost += known
        counters.cost_unsure += unsure
        counters.unpriced += unpriced
        if paid or known or unsure:
            till.add(held, known, unsure)

    def _cost_of(self, reports: Iterable[Report]) -> tuple[int, int, int]:
        """What is known, what it may be beyond that, and the tokens whose price is not known."""
        known = unsure = unpriced = 0
        for report in reports:
            price = price_of(self._stage, self._till.prices, report.model)
            if price is None:
                unpriced += report.tokens
                self._tell_unpriced(report)
            else:
                known += price.of(report.input, report.output) + price.least(report.either)
                unsure += price.most(report.either) - price.least(report.either)
        return known, unsure, unpriced

    def _tell_over(self, used: int, held: int) -> None:
        self._counters.over += 1
        name = self._stage.name
        self._till.tell(
            f'stage "{name}": calls cost more than its max_tokens allow (the first {shown(used)} instead of '
            f"{shown(held)}): a budget may be passed by that"
        )

    def _tell_unpriced(self, report: Report) -> None:
        """Without a budget it is told; with one the run stops."""
        name, till = self._stage.name, self._till
        if not report.tokens:
            return
        model = report.model if report.model is not None else self._stage.model
        what, hint = "calls, but not their model", 'model="..." of the stage, or of call.report, says which price holds'
        if model is not None:
            what = f'calls of the model "{model}", which has no price'
            hint = f'give [prices."{model}"] in stageflow.toml'
        if till.budget is None:
            till.tell(f'stage "{name}" reports {what}: what they cost is not in the account')
            return
        self._end(RunStopped(f'stage "{name}" reports {what}: a budget can\'t be kept', hint=hint))

    def _refuse_unreserved(self) -> None:
        if self._till.budget is not None:
            name = self._stage.name
            reason = f'stage "{name}" reports calls that cost money, and has no max_tokens: a budget can\'t be kept'
            self._end(RunStopped(reason, hint="max_tokens=(input, output): the most tokens that one call may use"))

    def _end(self, error: RunStopped) -> None:
        self.bar()
        self._till.stop(error)
