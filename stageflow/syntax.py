"""The job's code in a normal form: functions, and what remains of their file without them.

Source is compared as its syntax tree, so comments and layout do not count. A function without source is told by its
bytecode.
"""

from __future__ import annotations

import ast
import copy
import functools
import gc
import inspect
import linecache
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any, Final, TypeGuard

from stageflow.policies.redact import SECRET_NAME

__all__ = ["Sources", "code_of", "is_main", "last_name", "rest_of", "stable", "text_of", "unwrapped"]

_PACE: Final = frozenset({"max_in_flight", "queue_size", "timeout", "retry", "hedge", "rate_limit", "run", "gpus"})
"""Arguments that set the pace, of whatever call."""

_PACE_CALLS: Final = frozenset({"RateLimit", "Retry", "Hedge", "Batch", "Price"})

_ADDRESS: Final = re.compile(r" at 0x[0-9A-Fa-f]+")

_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def rest_of(file: str, sources: Sources) -> str:
    """The job file without its stages, in a normal form. To be asked for after the stages, since it takes them out."""
    tree = sources.tree(file)
    try:
        return _normal(_Rest(sources.left_out).visit(tree)) if tree is not None else ""
    except RecursionError:  # an expression of hundreds of terms
        return sources.text(os.path.realpath(file))


class Sources:
    """The trees of the files that functions stand in, each read once.

    Attributes:
        left_out: The definitions that are counted for themselves, by ``id``: the rest is what remains without them.
    """

    def __init__(self) -> None:
        self.left_out: set[int] = set()
        self._trees: dict[str, ast.Module | None] = {}
        self._definitions: dict[int, list[_Function]] = {}  # by the tree that they stand in

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
        if tree is not None and id(tree) not in self._definitions:
            self._definitions[id(tree)] = [node for node in ast.walk(tree) if isinstance(node, _Function)]
        found = [node for node in self._definitions.get(id(tree), ()) if _is_at(node, code)]
        if len(found) > 1:
            found = [node for node in found if isinstance(node, ast.Lambda) and _is_around(node.body, code)]
        # Of lambdas within each other the innermost.
        return max(found, key=lambda node: (node.lineno, node.col_offset), default=None)


def _parsed(text: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what there is to say was said when the job was imported
        try:
            return _tree(text) if text else None
        except SyntaxError:  # edited since then
            return None


def _tree(text: str) -> ast.Module:
    """``ast.parse``, which CPython 3.11 before 3.11.8 fails in where the collector has something else parsed meanwhile.

    As it does for the traceback of a task that nobody waited for: python/cpython#106905. So it has to wait.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(text)
    finally:
        if before:
            gc.enable()


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


def code_of(handler: Callable[..., Any], sources: Sources, *, leave_out: bool = False) -> str:
    """What a function does: its source, or its bytecode where it has none, and what is bound to it.

    Args:
        leave_out: Its definition is no part of the rest of the job.
    """
    bare, bound = unwrapped(handler)
    if not isinstance(bare, FunctionType):
        return "\0".join([f"{getattr(bare, '__module__', '')}.{getattr(bare, '__qualname__', type(bare))}", *bound])
    node = sources.definition(bare)
    if node is None:
        return "\0".join([repr(_code_key(bare.__code__)), *bound])
    if leave_out:
        sources.left_out.add(id(node))
    return "\0".join([_text(node), *bound])


def unwrapped(handler: Any) -> tuple[Any, list[str]]:
    """The function below partials, methods, ``functools.wraps`` and objects that can be called, and what they bind."""
    bound: list[str] = []
    while True:
        if isinstance(handler, functools.partial):
            named = {name: value for name, value in handler.keywords.items() if not SECRET_NAME.search(name)}
            bound += [stable(handler.args), stable(named)]
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
    others = [copy.deepcopy(each) for each in node.decorator_list if last_name(each) != "stage"]
    bare.decorator_list = [_Pace().visit(each) for each in others]
    return _normal(bare)


def _code_key(code: CodeType) -> tuple[Any, ...]:
    consts = [_code_key(const) if isinstance(const, CodeType) else stable(const) for const in code.co_consts]
    return code.co_code, consts, code.co_names


def stable(value: Any) -> str:
    """The ``repr`` of a value without what differs between processes: addresses, and the order of sets."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{stable(key)}: {stable(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(map(stable, value)))}}}"
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(stable, value))},)"
    return _ADDRESS.sub("", repr(value))


# The normal form


def text_of(node: ast.AST) -> str:
    """A part of a file in the normal form, without what only sets the pace."""
    return _normal(node, _paceless)


def _paceless(node: ast.AST) -> Iterator[tuple[str, Any]]:
    """The fields of a node, of a call without what sets the pace."""
    if not isinstance(node, ast.Call):
        return ast.iter_fields(node)
    given = [] if last_name(node) in _PACE_CALLS else node.keywords
    keywords = [keyword for keyword in given if keyword.arg not in _PACE]
    arguments = [] if last_name(node) in _PACE_CALLS else node.args
    return iter([("func", node.func), ("args", arguments), ("keywords", keywords)])


def _normal(tree: ast.AST, fields_of: Callable[[ast.AST], Iterator[tuple[str, Any]]] = ast.iter_fields) -> str:
    """A syntax tree as text. Neither ``ast.unparse`` nor ``ast.dump`` writes the same in all versions of Python."""
    written: list[str] = []
    waiting: list[Any] = [tree]
    while waiting:  # no recursion: an expression may have hundreds of terms
        part = waiting.pop()
        if isinstance(part, ast.AST):
            fields = [pair for pair in fields_of(part) if pair[1] is not None and pair[1] != []]
            written.append(f"{type(part).__name__}:{','.join(name for name, _ in fields)}")
            waiting += [value for _, value in reversed(fields)]
        elif isinstance(part, list):
            written.append(f"{len(part)}")
            waiting += reversed(part)
        else:
            written.append(stable(part))
    return "\0".join(written)


def last_name(node: ast.AST) -> str:
    """The last name of what is called, or of a bare decorator: ``stage`` of ``@pipeline.stage(...)``."""
    node = node.func if isinstance(node, ast.Call) else node
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def is_main(node: ast.AST) -> bool:
    """Whether it says what happens where the file is started as a script."""
    mains = ("__name__ == '__main__'", "'__main__' == __name__")
    return isinstance(node, ast.If) and ast.unparse(node.test) in mains


class _Pace(ast.NodeTransformer):
    """Takes out what only sets the pace."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        node.keywords = [keyword for keyword in node.keywords if keyword.arg not in _PACE]
        if last_name(node) in _PACE_CALLS:
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
        return None if is_main(node) else self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        is_pace = isinstance(node.value, ast.Call) and last_name(node.value) in _PACE_CALLS
        return None if is_pace else self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        """A stage added by name is wholly seen in the plan; one made on the spot is not."""
        call = node.value
        if (
            isinstance(call, ast.Call)
            and last_name(call) == "add_stage"
            and list(map(_is_named, call.args[1:])) == [True]
        ):
            return None
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = last_name(node)
        if name == "run_sync":
            node.args, node.keywords = [], []
        elif name == "linear":
            node.args = [each for each in node.args if not _is_named(each)]
        if name in ("Pipeline", "linear"):
            node.keywords = [keyword for keyword in node.keywords if keyword.arg not in ("params", "files", "prices")]
        return super().visit_Call(node)


def _is_named(node: ast.AST) -> bool:
    return isinstance(node, (ast.Name, ast.Attribute, ast.Lambda))
