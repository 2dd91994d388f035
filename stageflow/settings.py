"""Settings from outside the job file: the command line, the environment, and ``stageflow.toml`` beside the job.

Precedence: command line > environment > ``stageflow.toml`` > the job file. Each found value keeps the name of where it
came from, for ``stageflow check`` and for messages.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from stageflow.errors import SettingError
from stageflow.graph import nearest
from stageflow.money import Price
from stageflow.plan import Override

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["from_amounts", "from_environment", "from_file", "from_pairs", "parse_params"]

_VARIABLES: Final = {"STAGEFLOW_MAX_IN_FLIGHT": "max_in_flight", "STAGEFLOW_QUEUE_SIZE": "queue_size"}
_TEXTS: Final = ("version", "model")
"""Settings that are text, also where it looks like a number."""
_WORDS: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def from_amounts(setting: str, given: Iterable[str], origin: str) -> list[Override]:
    """``generate=64`` or ``64`` (for every stage), for ``max_in_flight`` and ``queue_size``.

    Returns:
        The overrides, those for every stage first: one for a stage is stronger.

    Raises:
        SettingError: A number is none, or a stage is given twice.
    """
    found: dict[str | None, Override] = {}
    for text in given:
        name, equals, value = text.rpartition("=")
        stage = name.strip() if equals else None
        if stage in found:
            raise SettingError(f"{origin}: {stage or 'the number for every stage'} is given twice", hint="give it once")
        found[stage] = Override(stage, setting, _number(text, value, origin), origin)
    return sorted(found.values(), key=lambda override: override.stage is not None)


def _number(text: str, value: str, origin: str) -> Any:
    if value.strip() == "auto":
        return "auto"  # a word that a stage may know
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise SettingError(f"{origin} {text}: must be a positive integer", hint=f"for instance {origin} generate=64")
    return number


def from_environment(environment: Mapping[str, str]) -> list[Override]:
    """``STAGEFLOW_MAX_IN_FLIGHT="generate=64,retrieve=8"`` and the like.

    Raises:
        SettingError: As for :func:`from_amounts`.
    """
    found = []
    for variable, setting in _VARIABLES.items():
        texts = [text for text in environment.get(variable, "").replace(",", " ").split() if text]
        found += from_amounts(setting, texts, variable)
    return found


def from_file(folder: Path) -> list[Override]:
    """The ``[stages.NAME]`` and ``[prices.MODEL]`` tables of ``stageflow.toml`` in a folder, if there is one.

    Raises:
        SettingError: It is no TOML, or has something else in it.
    """
    path = folder / "stageflow.toml"
    if not path.is_file():
        return []
    import tomllib  # here, as most jobs have no such file

    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SettingError(f"cannot read {path.name}: {error}", hint="mend it, or move it away") from None
    unknown = sorted(content.keys() - {"stages", "prices"})
    if unknown:
        raise SettingError(
            f'{path.name} has no section "{unknown[0]}"',
            hint="settings stand under [stages.NAME], prices under [prices.MODEL]",
        )
    stages = content.get("stages", {})
    if not isinstance(stages, dict) or not all(isinstance(settings, dict) for settings in stages.values()):
        raise SettingError(
            f"{path.name}: [stages] holds tables, one per stage", hint="[stages.generate] max_in_flight = 64"
        )
    found = [
        Override(stage, name, value, path.name) for stage, table in stages.items() for name, value in table.items()
    ]
    prices = content.get("prices", {})
    if prices:
        found.insert(0, Override(None, "prices", _prices(prices, path.name), path.name))
    return found


def _prices(given: Any, origin: str) -> dict[str, Price]:
    hint = '[prices."small"] input = 0.15 output = 0.60, per million tokens'
    if not isinstance(given, dict):
        raise SettingError(f"{origin}: [prices] holds tables, one per model", hint=hint)
    prices = {}
    for model, table in given.items():
        if not isinstance(table, dict) or table.keys() != {"input", "output"}:
            # A name with a dot in it, unquoted, is a table in a table.
            raise SettingError(f'{origin}: [prices."{model}"] must hold input and output, and nothing else', hint=hint)
        try:
            prices[model] = Price(**table)
        except SettingError as error:
            raise SettingError(f'{origin}: [prices."{model}"]: {error.message}', hint=hint) from None
    return prices


def from_pairs(given: Iterable[str]) -> list[Override]:
    """``generate.on_error=skip``, as ``--set`` takes it. The value is a number, true, false, or else text.

    Raises:
        SettingError: It is not of that form.
    """
    found = []
    for text in given:
        name, equals, value = text.partition("=")
        stage, dot, setting = name.strip().rpartition(".")
        if not equals or not dot or not stage or not setting:
            raise SettingError(
                f"--set {text}: expected STAGE.SETTING=VALUE", hint="for instance --set generate.on_error=skip"
            )
        found.append(Override(stage, setting, value if setting in _TEXTS else _value(value), "--set"))
    return found


def _value(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, (int, float, bool)) else text


def parse_params(given: Sequence[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """``-p NAME=VALUE``, each parsed to the type of the parameter's default.

    Raises:
        SettingError: A parameter is unknown, or its value is not of that type.
    """
    values = {}
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals:
            raise SettingError(f"-p {text}: expected NAME=VALUE", hint=_known(defaults))
        if name not in defaults:
            near = nearest(name, defaults)
            hint = f'did you mean "{near}"?' if near else _known(defaults)
            raise SettingError(f'unknown parameter "{name}"', hint=hint)
        values[name] = _typed(name, value, defaults[name])
    return values


def _known(defaults: Mapping[str, Any]) -> str:
    return f"parameters are: {', '.join(defaults)}" if defaults else "the job has no parameters"


def _typed(name: str, text: str, default: Any) -> Any:
    kind = type(default)
    try:
        if default is None:
            return _value(text)
        if kind is bool:
            return _WORDS[text.strip().lower()]
        if kind in (int, float):
            return kind(text)
        if kind in (list, dict):
            return _of_kind(json.loads(text), kind)
    except (ValueError, KeyError):
        words = {
            bool: "true or false",
            int: "a whole number",
            float: "a number",
            list: "a JSON array",
            dict: "a JSON object",
        }
        raise SettingError(
            f"-p {name}={text}: must be {words[kind]}, as its default {default!r} is",
            hint=f"for instance -p {name}={_as_text(default)}",
        ) from None
    return text


def _as_text(default: Any) -> str:
    return json.dumps(default, default=str) if isinstance(default, (bool, list, dict)) else str(default)


def _of_kind(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(value)
    return value
