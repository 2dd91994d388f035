"""What a function is made of: its own source, and whatever of the user's code it can reach by name.

* From the function one goes by the global names that its bytecode loads, its decorators, its defaults and what it has
  closed over to other functions and classes of the user's, and on from those. Code of the standard library and of
  installed packages is told by its name alone.
* A constant is told by its value, wherever that came from; where its name says that it is a secret, by its name.
* Any other object (a client, a template) is told by its class, and by the statements of the user's modules that mention
  it, with what those can reach.
* A module of the user's that is used as a whole is told by its whole source, with the modules of theirs that it
  imports.

Not seen is what only shows when it runs: imports inside of functions, names made up on the way, what becomes of objects
after the job was loaded, the environment, and files.
"""

from __future__ import annotations

import ast
import builtins
import dis
import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from stageflow.engine.attempt import NOT_THE_USERS
from stageflow.plain import is_plain
from stageflow.policies.redact import SECRET_NAME
from stageflow.syntax import Sources, code_of, is_main, last_name, stable, text_of, unwrapped

__all__ = ["uses_of"]


def uses_of(functions: Iterable[Callable[..., Any]], sources: Sources, home: str) -> list[str]:
    """A text for each thing that the functions are made of; the same in every process.

    Args:
        home: The folder of the job: what is in it is the user's also where it is installed.
    """
    uses = _Uses(sources, home)
    for function in functions:
        uses.add("", function)
    return sorted(uses.found)


class _Uses:
    """What was found so far.

    Attributes:
        found: A text for each thing.
    """

    def __init__(self, sources: Sources, home: str) -> None:
        self.found: set[str] = set()
        self._sources = sources
        self._home = home
        self._seen: dict[int, Any] = {}  # with the values: an id is taken again when its object is gone
        modules = {
            file: module for module in list(sys.modules.values()) if self._is_the_users(file := _file_of(module))
        }
        self._modules = [vars(modules[file]) for file in sorted(modules)]

    def add(self, name: str, value: Any, file: str = "") -> None:
        """Add what a name stands for, in a file."""
        if _is_data(value):
            told = "" if SECRET_NAME.search(name) else stable(value)
            self._tell(os.path.basename(file), name, type(value).__name__, told)
        elif id(value) not in self._seen:
            self._seen[id(value)] = value
            if isinstance(value, ModuleType):
                self._module(value)
            elif isinstance(value, type):
                self._class(value)
            elif isinstance(value, (FunctionType, MethodType, functools.partial)) or _is_wrapper(value):
                self._function(value)
            else:
                self._object(value)

    def _tell(self, *texts: str) -> None:
        self.found.add("\0".join(texts))

    def _is_the_users(self, file: str) -> bool:
        place = next((place for place in NOT_THE_USERS if _is_below(file, place)), None)
        return bool(file) and (place is None or (_is_below(file, self._home) and _is_below(self._home, place)))

    def _function(self, value: Any) -> None:
        bare, _ = unwrapped(value)
        for name, each in _bound_to(value):
            self.add(name, each)
        if not isinstance(bare, FunctionType) or not self._is_the_users(bare.__code__.co_filename):
            self._tell(str(getattr(bare, "__module__", "")), str(getattr(bare, "__qualname__", type(bare))))
            return
        self._tell(bare.__qualname__, code_of(value, self._sources))
        for name, cell in zip(bare.__code__.co_freevars, bare.__closure__ or (), strict=True):
            for each in _contents(cell):
                self.add(f"{bare.__qualname__}.{name}", each)
        for place, each in enumerate([*(bare.__defaults__ or ()), *(bare.__kwdefaults__ or {}).values()]):
            self.add(f"{bare.__qualname__}.{place}", each)
        self._names(_globals_of(bare.__code__), bare.__globals__)
        for decorator in getattr(self._sources.definition(bare), "decorator_list", ()):
            if last_name(decorator) != "stage":
                self._names(_names_in(decorator), bare.__globals__)

    def _names(self, names: Iterable[str], module: Mapping[str, Any]) -> None:
        for name in names:
            if name in module and module[name] is not getattr(builtins, name, self):
                self.add(name, module[name], str(module.get("__file__")))

    def _class(self, kind: type) -> None:
        module = sys.modules.get(kind.__module__)
        if module is None or not self._is_the_users(_file_of(module)):
            self._tell(kind.__module__, kind.__qualname__)
            return
        tree = self._sources.tree(_file_of(module), vars(module))
        nodes = ast.walk(tree) if tree is not None else ()
        found = [node for node in nodes if isinstance(node, ast.ClassDef) and node.name == kind.__name__]
        for node in found:
            self._tell(kind.__qualname__, text_of(node))
            self._names(_names_in(node), vars(module))
        if not found:
            self._statements(kind)
        for base in kind.__bases__:
            self.add("", base)

    def _module(self, module: ModuleType) -> None:
        file = _file_of(module)
        if not self._is_the_users(file):
            self._tell(module.__name__)
            return
        tree = self._sources.tree(file, vars(module))
        self._tell(os.path.basename(file), text_of(tree) if tree is not None else "")
        for value in list(vars(module).values()):
            owner = value if isinstance(value, ModuleType) else sys.modules.get(_module_of(value))
            if owner is not None and self._is_the_users(_file_of(owner)):
                self.add("", owner)

    def _object(self, value: Any) -> None:
        kind = type(value)
        if kind.__module__ == "stageflow.pipeline":
            return  # by the job itself one would come to its other stages
        self.add("", kind)
        if not self._statements(value):
            for name, each in sorted(getattr(value, "__dict__", {}).items()):
                if _is_data(each):
                    self.add(f"{kind.__qualname__}.{name}", each)

    def _statements(self, value: Any) -> bool:
        """Add the statements of modules that make an object, or do something to it. False where none is known to."""
        homes = [(module, name) for module in self._modules for name, each in list(module.items()) if each is value]
        for module, name in homes:
            tree = self._sources.tree(module["__file__"], module)
            for node in tree.body if tree is not None else ():
                if _mentions(node, name):
                    self._tell(name, text_of(node))
                    self._names(_names_in(node), module)
        return bool(homes)


def _bound_to(value: Any) -> Iterator[tuple[str, Any]]:
    """What a partial or a method has besides its code."""
    while isinstance(value, functools.partial):
        yield from ((f"partial.{place}", each) for place, each in enumerate(value.args))
        yield from value.keywords.items()
        value = value.func
    if isinstance(value, MethodType):
        yield "self", value.__self__


def _is_wrapper(value: Any) -> bool:
    return inspect.getattr_static(value, "__wrapped__", None) is not None


def _is_data(value: Any) -> bool:
    if isinstance(value, (tuple, set, frozenset)):
        return all(map(_is_data, value))
    return is_plain(value) or type(value) is bytes


def _file_of(module: Any) -> str:
    file = getattr(module, "__file__", None)
    return file if isinstance(file, str) else ""


def _is_below(file: str, place: str) -> bool:
    return file.startswith(place if place == "<" else os.path.join(place, ""))


def _module_of(value: Any) -> str:
    name = (value if isinstance(value, (FunctionType, type)) else type(value)).__module__
    return name if isinstance(name, str) else ""


def _contents(cell: Any) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # nothing was put there yet
        return []


def _globals_of(code: CodeType) -> list[str]:
    """The global names that a function loads, or one within it."""
    names = [each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    for const in code.co_consts:
        if isinstance(const, CodeType):
            names += _globals_of(const)
    return list(dict.fromkeys(names))


def _names_in(node: ast.AST) -> list[str]:
    return [each.id for each in ast.walk(node) if isinstance(each, ast.Name)]


def _mentions(node: ast.stmt, name: str) -> bool:
    """Whether a statement may make what a name stands for, or do something to it; a definition does not."""
    if is_main(node) or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return False
    imported = [each.asname or each.name for each in ast.walk(node) if isinstance(each, ast.alias)]
    return name in _names_in(node) or name in imported
