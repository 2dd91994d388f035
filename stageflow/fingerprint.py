"""What of a job decides its results, as digests: a run that goes on with what another began must be of the same job.

* **A stage** is the source of its function, its ``version``, ``on_error``, ``emit`` and ``when``, and whether it is
  batched.
* **The rest** is the job file without its stages: helper functions, prompts, constants.
* **What only sets the pace is left out** there: ``max_in_flight``, ``queue_size``, ``timeout``, ``retry``, ``hedge``,
  ``rate_limit``, ``run``, ``gpus``, and the arguments of ``RateLimit``, ``Retry``, ``Hedge`` and ``Batch``. So are
  prices, and what a stage says of its calls' cost, and what stands under ``if __name__ == "__main__":``, since it says
  how the job is run.
* **Other files** count where the job names them, ``Pipeline(files=["prompts.py", "prompt.txt"])``; modules that it
  imports do not by themselves, nor do values that a function has closed over.

Source is compared as its syntax tree, so comments and layout do not count. Digests are the same in every process, and
in all versions of Python in which the tree is. A function without source is told by its bytecode, which is another in
each version.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from stageflow.commit import JobIdentity
from stageflow.errors import DefinitionError
from stageflow.plan import Plan
from stageflow.policies.failure import Degrade
from stageflow.policies.redact import SECRET_NAME
from stageflow.stage import Stage
from stageflow.syntax import Sources, code_of, rest_of, stable
from stageflow.uses import uses_of

__all__ = ["cache_digests", "changes", "job_identity", "upstream_digests"]

_DIGITS: Final = 16
"""Hex digits kept of a digest: it tells edits apart, and guards against nobody."""


def job_identity(plan: Plan) -> JobIdentity:
    """The digests of a job.

    A parameter is left out where its name says that it is a secret, as ``api_key`` does.

    Raises:
        DefinitionError: A file that the job declares can't be read.
    """
    file, sources = plan.file, Sources()
    stages = {stage.name: _stage_digest(stage, sources) for stage in plan.stages.values()}
    return JobIdentity(
        file=os.path.basename(file) if file is not None else plan.name,
        rest=_digest(*_shape(plan), rest_of(file, sources) if file is not None else ""),
        stages=stages,
        graph={name: tuple(sorted(needs)) for name, needs in plan.dependencies.items()},
        files={name: _file_digest(plan, name) for name in plan.files},
        params=_param_digests(plan),
    )


def changes(before: JobIdentity, now: JobIdentity) -> list[str]:
    """What is not as it was, in the words in which the user is told: ``stage "judge" (new)``. Empty: nothing."""
    return [
        *_stage_changes(before, now),
        *([f"{now.file} (outside its stages)"] if before.rest != now.rest else []),
        *_value_changes("file", before.files, now.files),
        *_value_changes("parameter", before.params, now.params),
    ]


def _stage_changes(before: JobIdentity, now: JobIdentity) -> Iterator[str]:
    for name, digest in now.stages.items():
        if name not in before.stages:
            yield f'stage "{name}" (new)'
            continue
        edges = [sorted(each.graph.get(name, ())) for each in (before, now)]
        what = ["source"] * (before.stages[name] != digest) + ["dependencies"] * (edges[0] != edges[1])
        if what:
            yield f'stage "{name}" ({", ".join(what)})'
    for name in before.stages:
        if name not in now.stages:
            yield f'stage "{name}" (removed)'


def _value_changes(kind: str, before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for name in dict.fromkeys([*now, *before]):
        if name not in before:
            yield f'{kind} "{name}" (new)'
        elif name not in now:
            yield f'{kind} "{name}" (removed)'
        elif before[name] != now[name]:
            yield f'{kind} "{name}"'


def upstream_digests(identity: JobIdentity, plan: Plan) -> dict[str, str]:
    """By stage, a digest of all that decides what it is given.

    That is the stages above it with their edges, the job file outside its stages, the declared files, and, where a
    stage above takes them, the parameters. Where it is what it was, results that were kept of the stages above still
    hold, and a record that failed here can be taken up here.
    """
    everywhere = [identity.rest, *_pairs(identity.files)]
    found: dict[str, str] = {}
    for name in plan.stages:
        above = [(need, identity.stages[need], *identity.graph[need]) for need in sorted(plan.ancestors[name])]
        told = any(_takes_params(plan.stages[need], plan) for need in plan.ancestors[name])
        params = _pairs(identity.params) if told else ()
        found[name] = _digest(*everywhere, *map(repr, above), *params)
    return found


def cache_digests(plan: Plan) -> dict[str, str]:
    """By stage, where it has a cache, a digest of all that decides a result beside the values it is called with.

    That is its name, its ``version``, its function with all that this is made of (see :mod:`stageflow.uses`), as are
    the resources it takes; the declared files; and, where it takes them, the parameters. No other setting counts, as
    none decides what a call returns; nor do other stages, whose results are among the values.

    Raises:
        DefinitionError: A file that the job declares can't be read.
    """
    caching = [stage for stage in plan.stages.values() if stage.cache]
    sources = Sources()
    files = [*_pairs({name: _file_digest(plan, name) for name in plan.files})] if caching else []
    found = {}
    for stage in caching:
        takes = [parameter.name for parameter in stage.parameters]
        functions = [stage.handler, *(plan.resources[name].function for name in _resources_of(takes, plan))]
        uses = [code_of(each, sources) for each in functions]  # also of those that are not the user's own
        uses += uses_of(functions, sources, os.path.dirname(plan.file or ""))
        params = [*_pairs(_param_digests(plan))] if _takes_params(stage, plan) else []
        found[stage.name] = _digest(stage.name, repr(stage.version), *uses, "files", *files, "params", *params)
    return found


def _param_digests(plan: Plan) -> dict[str, str]:
    """Those of the job's parameters; what is a secret by its name is left out."""
    return {name: _digest(name, stable(value)) for name, value in plan.params.items() if not SECRET_NAME.search(name)}


def _pairs(values: Mapping[str, str]) -> Iterable[str]:
    return (f"{name}={value}" for name, value in sorted(values.items()))


def _takes_params(stage: Stage, plan: Plan) -> bool:
    """Whether it sees the job's parameters, itself or by way of its resources."""
    takes = [parameter.name for parameter in (*stage.parameters, *stage.when_parameters)]
    return "params" in takes or any("params" in plan.resources[name].uses for name in _resources_of(takes, plan))


def _resources_of(names: Iterable[str], plan: Plan) -> list[str]:
    """The resources among the names of parameters, and those that they use."""
    waiting, found = [*names], dict[str, None]()
    while waiting:
        name = waiting.pop()
        if name in plan.resources and name not in found:
            found[name] = None
            waiting += plan.resources[name].uses
    return list(found)


# The parts


def _stage_digest(stage: Stage, sources: Sources) -> str:
    policy = stage.on_error
    on_error = policy if isinstance(policy, str) else "degrade"
    stand_in = policy.value if isinstance(policy, Degrade) else None
    return _digest(
        code_of(stage.handler, sources, leave_out=True),
        repr(stage.version),
        on_error,
        code_of(stand_in, sources) if callable(stand_in) else stable(stand_in),
        repr(stage.emit),
        code_of(stage.when, sources, leave_out=True) if stage.when is not None else "",
        repr(stage.batch is not None),
    )


def _shape(plan: Plan) -> tuple[str, ...]:
    """What a pipeline says of itself, also where it has no file."""
    context = plan.context.__qualname__ if plan.context is not None else None
    return repr(plan.key), repr(context), repr(plan.emitted), plan.on_partial


def _file_digest(plan: Plan, name: str) -> str:
    try:
        with open(os.path.join(os.path.dirname(plan.file or ""), name), "rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()[:_DIGITS]
    except OSError as error:
        raise DefinitionError(
            f"Pipeline(files=...): cannot read {name}: {error.strerror}",
            hint="paths are relative to the job file",
            where=plan.where,
        ) from None


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "backslashreplace")).hexdigest()[:_DIGITS]
