"""What the calls of a job's stages may cost, by its prices and its stages' settings."""

from __future__ import annotations

from collections.abc import Mapping

from stageflow.errors import RequestError
from stageflow.graph import nearest
from stageflow.money import Price
from stageflow.plan import Plan
from stageflow.stage import Stage

__all__ = ["most_per_call", "price_of", "refuse_unreservable"]


def price_of(stage: Stage, prices: Mapping[str, Price], model: str | None = None) -> Price | None:
    """The price of a stage's calls: of the model that a call told, else of the stage's, else the only one there is."""
    name = model if model is not None else stage.model
    if name is not None:
        return prices.get(name)
    return next(iter(prices.values())) if len(prices) == 1 else None


def most_per_call(stage: Stage, prices: Mapping[str, Price]) -> int | None:
    """The most that one call of a stage may cost; ``None`` where that is not known.

    Of a stage that names no model, the calls may be to any of those that have a price.
    """
    if stage.max_tokens is None:
        return None
    own = price_of(stage, prices)
    possible = [own] if own is not None else list(prices.values()) if stage.model is None else []
    limit = stage.max_tokens
    return max(
        (price.of(*limit) if isinstance(limit, tuple) else price.most(limit) for price in possible), default=None
    )


def refuse_unreservable(plan: Plan) -> None:
    """Refuse a budget for a job of which it can't be said beforehand what a call may cost.

    Raises:
        RequestError: There are no prices, a stage names a model and lacks ``max_tokens`` or a price, or no stage has
            ``max_tokens``.
    """
    if not plan.prices:
        raise RequestError(
            "a budget needs prices, and the job has none",
            hint='Pipeline(prices={"model": Price(input=0.15, output=0.60)}), or [prices."model"] in stageflow.toml',
        )
    for stage in plan.stages.values():
        if stage.model is not None and stage.model not in plan.prices:
            near = nearest(stage.model, plan.prices)
            raise RequestError(
                f'stage "{stage.name}": there is no price for its model "{stage.model}", and a budget needs it',
                hint=f'did you mean "{near}"?' if near else "prices are: " + ", ".join(plan.prices),
            )
        if stage.model is not None and stage.max_tokens is None:
            raise RequestError(
                f'stage "{stage.name}" has no max_tokens: what its calls may cost can\'t be reserved from a budget',
                hint="max_tokens=(input, output): the most tokens that one call may use",
            )
    if all(stage.max_tokens is None for stage in plan.stages.values()):
        raise RequestError(
            "no stage has max_tokens: what calls may cost can't be reserved from a budget",
            hint='model="...", max_tokens=(input, output) for each stage that costs money',
        )
