"""What of a job decides its results, as digests: a run that goes on with what another began must be of the same job.

* **A stage** is the source of its function, its ``version``, ``on_error``, ``emit`` and ``when``, and whether it is
  batched.
* **The rest** is the job file without its stages: helper functions, prompts, constants.
* **What only sets the pace is left out** there: ``max_in_flight``, ``queue_size``, ``timeout``, ``retry``,
  ``rate_limit``, ``run``, and the arguments of ``RateLimit``, ``Retry`` and ``Batch``. So is what stands under
  ``if __name__ == "__main__":``, since it says how the job is run.
* **Other files** count where the job names them, ``Pipeline(files=["prompts.py", "prompt.txt"])``; modules that it
  imports do not by themselves, nor do values that a function has closed over.

Source is compared as its syntax tree, so comments and layout do not count. Digests are the same in every process, and
in all versions of Python in which the tree is. A function without source is told by its bytecode, which is another in
each version.
"""

from __future__ import annotations

import ast
import copy
import functools
import hashlib
import inspect
import linecache
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any, Final, TypeGuard

from stageflow.commit import JobIdentity
from stageflow.errors import DefinitionError
from stageflow.plan import Plan
from stageflow.policies.failure import Degrade
from stageflow.stage import Stage

__all__ = ["changes", "job_identity", "upstream_digests"]

_DIGITS: Final = 16
"""Hex digits kept of a digest: it tells edits apart, and guards against nobody."""

_PACE: Final = frozenset({"max_in_flight", "queue_size", "timeout", "retry", "rate_limit", "run"})
"""Arguments that set the pace, of whatever call."""

_PACE_CALLS: Final = frozenset({"RateLimit", "Retry", "Batch"})

_SECRET: Final = re.compile(r"KEY(?!WORD)|TOKEN(?!S)|SECRET|PASSWORD", re.IGNORECASE)
"""In the name of a parameter that is no part of the job: a key may be renewed. ``max_tokens`` is no secret."""

_ADDRESS: Final = re.compile(r" at 0x[0-9A-Fa-f]+")

_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def job_identity(plan: Plan, *, file: str | None = None, params: Mapping[str, Any] | None = None) -> JobIdentity:
    """The digests of a job.

    Args:
        file: The job file; where it is not given, the one in which ``Pipeline(...)`` was called, or that was loaded.
        params: The values of the job's parameters; those of the plan where they are not given. A parameter whose name
            has ``key``, ``token``, ``secret`` or ``password`` in it is left out.

    Raises:
        DefinitionError: A file that the job declares can't be read.
    """
    file = file if file is not None else plan.file
    sources = _Sources()
    stages = {stage.name: _stage_digest(stage, sources) for stage in plan.stages.values()}
    return JobIdentity(
        file=os.path.basename(file) if file is not None else plan.name,
        rest=_digest(*_shape(plan), _rest(file, sources) if file is not None else ""),
        stages=stages,
        graph={name: tuple(sorted(needs)) for name, needs in plan.dependencies.items()},
        files={name: _file_digest(plan, name, file) for name in plan.files},
        params={
            name: _digest(name, _stable(value))
            for name, value in (plan.params if params is None else params).items()
            if not _SECRET.search(name)
        },
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


def _pairs(values: Mapping[str, str]) -> Iterable[str]:
    return (f"{name}={value}" for name, value in sorted(values.items()))


def _takes_params(stage: Stage, plan: Plan) -> bool:
    """Whether it sees the job's parameters, itself or by way of its resources."""
    waiting = [parameter.name for parameter in (*stage.parameters, *stage.when_parameters)]
    while waiting:
        name = waiting.pop()
        if name == "params":
            return True
        if name in plan.resources:
            waiting += plan.resources[name].uses
    return False


# The parts


def _stage_digest(stage: Stage, sources: _Sources) -> str:
    policy = stage.on_error
    on_error = policy if isinstance(policy, str) else "degrade"
    stand_in = policy.value if isinstance(policy, Degrade) else None
    return _digest(
        _code_of(stage.handler, sources, leave_out=True),
        repr(stage.version),
        on_error,
        _code_of(stand_in, sources) if callable(stand_in) else _stable(stand_in),
        repr(stage.emit),
        _code_of(stage.when, sources, leave_out=True) if stage.when is not None else "",
        repr(stage.batch is not None),
    )


def _shape(plan: Plan) -> tuple[str, ...]:
    """What a pipeline says of itself, also where it has no file."""
    context = plan.context.__qualname__ if plan.context is not None else None
    return repr(plan.key), repr(context), repr(plan.emitted), plan.on_partial


def _rest(file: str, sources: _Sources) -> str:
    """The job file without its stages, in a normal form. To be asked for after the stages, since it takes them out."""
    tree = sources.tree(file)
    try:
        return _normal(_Rest(sources.left_out).visit(tree)) if tree is not None else ""
    except RecursionError:  # an expression of hundreds of terms
        return sources.text(os.path.realpath(file))


def _file_digest(plan: Plan, name: str, file: str | None) -> str:
    try:
        with open(os.path.join(os.path.dirname(file or ""), name), "rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()[:_DIGITS]
    except OSError as error:
        raise DefinitionError(
            f"Pipeline(files=...): cannot read {name}: {error.strerror}",
            hint="paths are relative to the job file",
            where=plan.where,
        ) from None


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "backslashreplace")).hexdigest()[:_DIGITS]


# Functions


class _Sources:
    """The trees of the files that functions stand in, each read once.

    Attributes:
        left_out: The definitions that are counted for themselves, by ``id``: the rest is what remains without them.
    """

    def __init__(self) -> None:
        self.left_out: set[int] = set()
        self._trees: dict[str, ast.Module | None] = {}

    def tree(self, file: str, names: dict[str, Any] | None = None) -> ast.Module | None:
        """The tree of a file; ``None`` where there is no source. ``names`` are the globals of its module."""
        path = os.path.realpath(file) if os.path.exists(file) else file
        if path not in self._trees:
            self._trees[path] = _parsed(self.text(path, names))
        return self._trees[path]

    def text(self, path: str, names: dict[str, Any] | None = None) -> str:
        """What stands in a file, or was typed in at a prompt that remembers it."""
        linecache.checkcache(path)
        return "".join(linecache.getlines(path, names))

    def definition(self, function: FunctionType) -> _Function | None:
        """Where a function is defined."""
        code, names = function.__code__, function.__globals__
        tree = self.tree(_file_of(code, names), names)
        found = [node for node in ast.walk(tree) if _is_at(node, code)] if tree is not None else []
        if len(found) > 1:
            found = [node for node in found if isinstance(node, ast.Lambda) and _is_around(node.body, code)]
        # Of lambdas within each other the innermost.
        return max(found, key=lambda node: (node.lineno, node.col_offset), default=None)


def _parsed(text: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what there is to say was said when the job was imported
        try:
            return ast.parse(text) if text else None
        except SyntaxError:  # edited since then
            return None


def _file_of(code: CodeType, names: Mapping[str, Any]) -> str:
    """The file of a function. A script's own functions may know it relative to where the script was started."""
    module = names.get("__file__")
    if isinstance(module, str) and os.path.basename(module) == code.co_filename.rpartition(os.sep)[2]:
        return module
    return code.co_filename


def _is_at(node: ast.AST, code: CodeType) -> TypeGuard[_Function]:
    """Whether a definition may be that of ``code``: by its name and its first line, which is its first decorator's."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        line = node.decorator_list[0].lineno if node.decorator_list else node.lineno
        return (node.name, line) == (code.co_name, code.co_firstlineno)
    return isinstance(node, ast.Lambda) and (code.co_name, code.co_firstlineno) == ("<lambda>", node.lineno)


def _is_around(body: ast.expr, code: CodeType) -> bool:
    """Whether all instructions come from inside of an expression, so that lambdas on one line can be told apart."""
    begin, end = (body.lineno, body.col_offset), (body.end_lineno or 0, body.end_col_offset or 0)
    for line, end_line, column, end_column in code.co_positions():
        if line is None or end_line is None or column is None or end_column is None:
            continue
        if (line, column) != (end_line, end_column) and not begin <= (line, column) <= (end_line, end_column) <= end:
            return False
    return True


def _code_of(handler: Callable[..., Any], sources: _Sources, *, leave_out: bool = False) -> str:
    """What a function does: its source, or its bytecode where it has none, and what is bound to it.

    Args:
        leave_out: Its definition is no part of the rest of the job.
    """
    bare, bound = _unwrapped(handler)
    if not isinstance(bare, FunctionType):
        return "\0".join([f"{getattr(bare, '__module__', '')}.{getattr(bare, '__qualname__', type(bare))}", *bound])
    node = sources.definition(bare)
    if node is None:
        return "\0".join([repr(_code_key(bare.__code__)), *bound])
    if leave_out:
        sources.left_out.add(id(node))
    return "\0".join([_text(node), *bound])


def _unwrapped(handler: Any) -> tuple[Any, list[str]]:
    """The function below partials, methods, ``functools.wraps`` and objects that can be called, and what they bind."""
    bound: list[str] = []
    while True:
        if isinstance(handler, functools.partial):
            named = {name: value for name, value in handler.keywords.items() if not _SECRET.search(name)}
            bound += [_stable(handler.args), _stable(named)]
            handler = handler.func
        elif isinstance(handler, MethodType):
            handler = handler.__func__
        elif hasattr(handler, "__wrapped__"):
            handler = inspect.unwrap(handler)
        elif isinstance(handler, FunctionType):
            return handler, bound
        elif isinstance(handler, type) and isinstance(handler.__init__, FunctionType):  # type: ignore[misc]
            handler = handler.__init__  # type: ignore[misc]
        elif isinstance(getattr(type(handler), "__call__", None), FunctionType):  # noqa: B004 - we ask what it is
            handler = type(handler).__call__
        else:
            return handler, bound


def _text(node: _Function) -> str:
    """A definition in a normal form, without the decorator that makes it a stage; what others do to it counts."""
    if isinstance(node, ast.Lambda):
        return _normal(node)
    bare = copy.copy(node)
    others = [copy.deepcopy(each) for each in node.decorator_list if _called(each) != "stage"]
    bare.decorator_list = [_Pace().visit(each) for each in others]
    return _normal(bare)


def _code_key(code: CodeType) -> tuple[Any, ...]:
    consts = [_code_key(const) if isinstance(const, CodeType) else _stable(const) for const in code.co_consts]
    return code.co_code, consts, code.co_names


def _stable(value: Any) -> str:
    """The ``repr`` of a value without what differs between processes: addresses, and the order of sets."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_stable(key)}: {_stable(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(map(_stable, value)))}}}"
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(_stable, value))},)"
    return _ADDRESS.sub("", repr(value))


# The normal form


def _normal(tree: ast.AST) -> str:
    """A syntax tree as text. Neither ``ast.unparse`` nor ``ast.dump`` writes the same in all versions of Python."""
    written: list[str] = []
    waiting: list[Any] = [tree]
    while waiting:  # no recursion: an expression may have hundreds of terms
        part = waiting.pop()
        if isinstance(part, ast.AST):
            fields = [pair for pair in ast.iter_fields(part) if pair[1] is not None and pair[1] != []]
            written.append(f"{type(part).__name__}:{','.join(name for name, _ in fields)}")
            waiting += [value for _, value in reversed(fields)]
        elif isinstance(part, list):
            written.append(f"{len(part)}")
            waiting += reversed(part)
        else:
            written.append(_stable(part))
    return "\0".join(written)


def _called(node: ast.AST) -> str:
    """The last name of what is called, or of a bare decorator: ``stage`` of ``@pipeline.stage(...)``."""
    node = node.func if isinstance(node, ast.Call) else node
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


class _Pace(ast.NodeTransformer):
    """Takes out what only sets the pace."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        node.keywords = [keyword for keyword in node.keywords if keyword.arg not in _PACE]
        if _called(node) in _PACE_CALLS:
            node.args, node.keywords = [], []
        return self.generic_visit(node)


class _Rest(_Pace):
    """Takes out also what is counted for itself: the stages, the values of parameters, the contents of files."""

    def __init__(self, left_out: set[int]) -> None:
        self._left_out = left_out

    def visit(self, node: ast.AST) -> Any:
        if id(node) in self._left_out:
            return ast.Name("_", ast.Load()) if isinstance(node, ast.Lambda) else None
        return super().visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | None:
        is_main = ast.unparse(node.test) in ("__name__ == '__main__'", "'__main__' == __name__")
        return None if is_main else self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        is_pace = isinstance(node.value, ast.Call) and _called(node.value) in _PACE_CALLS
        return None if is_pace else self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        """A stage added by name is wholly seen in the plan; one made on the spot is not."""
        call = node.value
        if (
            isinstance(call, ast.Call)
            and _called(call) == "add_stage"
            and list(map(_is_named, call.args[1:])) == [True]
        ):
            return None
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = _called(node)
        if name == "run_sync":
            node.args, node.keywords = [], []
        elif name == "linear":
            node.args = [each for each in node.args if not _is_named(each)]
        if name in ("Pipeline", "linear"):
            node.keywords = [keyword for keyword in node.keywords if keyword.arg not in ("params", "files")]
        return super().visit_Call(node)


def _is_named(node: ast.AST) -> bool:
    return isinstance(node, (ast.Name, ast.Attribute, ast.Lambda))
