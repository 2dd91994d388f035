"""Which value of a setting holds: the default, the job file's, or one from outside; each with where it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from stageflow.errors import SettingError
from stageflow.plan.draft import Draft, StageDraft
from stageflow.stage import (
    DEFAULT_MAX_IN_FLIGHT,
    DEFAULT_TIMEOUT,
    SMALLEST_DEFAULT_QUEUE,
    Setting,
    check_setting,
    is_async,
)

__all__ = ["Override", "prices_of", "settings_of"]

_DEFAULTS: Final[Mapping[str, Any]] = {
    "max_in_flight": DEFAULT_MAX_IN_FLIGHT,
    "queue_size": None,
    "run": None,
    "gpus": None,
    "on_error": "dead_letter",
    "timeout": DEFAULT_TIMEOUT,
    "retry": None,
    "hedge": None,
    "rate_limit": None,
    "batch": None,
    "when": None,
    "emit": True,
    "version": None,
    "cache": False,
    "model": None,
    "max_tokens": None,
}


@dataclass(frozen=True, slots=True)
class Override:
    """A setting given from outside the job file; ``stage`` is ``None`` where it is for every stage.

    ``prices``, by model, are the job's own: they are for no stage, and hold beside those of the job file.
    """

    stage: str | None
    setting: str
    value: Any
    origin: str


def settings_of(draft: StageDraft, overrides: Sequence[Override]) -> dict[str, Setting]:
    """The settings of a stage: the defaults, then the job file's, then those from outside, weakest first.

    Raises:
        SettingError: A setting is unknown, out of its range, or not for a function of this kind.
    """
    settings = {name: Setting(value, "default") for name, value in _DEFAULTS.items()}
    given = [(name, Setting(value, draft.where)) for name, value in draft.settings.items()]
    mode = _run_mode(draft, overrides)
    for override in overrides:
        if _is_of_prices(override):
            continue
        # A bare --max-in-flight is about calls to a service; a process costs a core and its memory.
        spared = override.stage is None and override.setting == "max_in_flight" and mode.value == "process"
        if override.stage == draft.name or (override.stage is None and not spared):
            given.append((override.setting, Setting(override.value, override.origin)))
    for name, setting in given:
        if name == "version" and setting.value is None:
            continue
        check_setting(draft.name, name, setting.value, setting.origin)
        settings[name] = setting
    settings["run"] = mode
    if settings["queue_size"].value is None:
        size = max(SMALLEST_DEFAULT_QUEUE, settings["max_in_flight"].value)
        settings["queue_size"] = Setting(size, "default")
    return settings


def _run_mode(draft: StageDraft, overrides: Sequence[Override]) -> Setting:
    """Where the handler runs: as set, else by what it is."""
    natural = "async" if is_async(draft.handler) else "thread"
    mode = Setting(draft.settings.get("run") or natural, draft.where if draft.settings.get("run") else "default")
    for override in overrides:
        if override.setting == "run" and override.stage in (None, draft.name):
            mode = Setting(override.value, override.origin)
    check_setting(draft.name, "run", mode.value, mode.origin)
    if (mode.value == "async") != (natural == "async"):
        kind = "an async function" if natural == "async" else "a plain function"
        allowed = '"async"' if natural == "async" else '"thread", "process" or "inline"'
        raise SettingError(
            f'stage "{draft.name}": {kind} can\'t run as "{mode.value}"',
            hint=f"run must be {allowed}",
            where=draft.where,
        )
    return mode


def prices_of(draft: Draft, overrides: Sequence[Override]) -> dict[str, Setting]:
    """What tokens cost, by model: by the job file, then by those from outside, weakest first."""
    prices = {name: Setting(price, draft.where) for name, price in draft.prices.items()}
    for override in overrides:
        if _is_of_prices(override):
            prices |= {name: Setting(price, override.origin) for name, price in override.value.items()}
    return prices


def _is_of_prices(override: Override) -> bool:
    return override.setting == "prices" and override.stage is None
