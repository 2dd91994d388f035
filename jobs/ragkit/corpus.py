"""The documentation of the running interpreter as passages: a real corpus with no download.

Three sources, in this order, and of two passages with one name the first wins:

1. docstrings of the standard library's Python sources, read with ``ast``: nothing is imported, so nothing runs;
2. docstrings of the modules written in C, which have no source to parse, so those are imported and inspected;
3. the language reference behind ``help("with")``, cut into pieces of about 900 characters.

The id of a passage is the name a user would write: ``asyncio.Queue.put``, though its source is ``asyncio/queues.py``;
later pieces of a long docstring are ``name#2``, and the language reference is ``topic:NAME#n``. Ids, texts and their
order depend on the interpreter alone.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType

from ragkit.publicnames import Module, Public

PIECE_CHARS = 900
LONG_CHARS = 1_500
# Tests, demos and vendored tools document nothing a user calls; `readline` writes to the terminal when imported.
_NAMES_LEFT_OUT = """
test tests idlelib lib2to3 turtledemo ensurepip pydoc_data site-packages dist-packages lib-dynload distutils
__pycache__ __phello__ readline antigravity this _ios_support _android_support _apple_support
"""
_LEFT_OUT = frozenset(_NAMES_LEFT_OUT.split())


@dataclass(frozen=True, slots=True)
class Passage:
    """One piece of documentation.

    Args:
        id: Qualified name, or ``topic:NAME#n``; unique in the corpus.
        text: The documentation itself; citations are offsets into it.
    """

    id: str
    text: str


def build() -> list[Passage]:
    """Read the running interpreter's documentation; about 8,000 passages in about two seconds."""
    modules = [_read(name, path) for name, path in _sources()]
    compiled = [_inspect(module) for module in _compiled({module.name for module in modules})]
    public = Public([*modules, *compiled])
    texts: dict[str, str] = {}
    for module in (*modules, *compiled):
        for name, doc in module.docs:
            for key, piece in _numbered(public.name(name), doc):
                texts.setdefault(key, piece)
    for key, piece in _topics():
        texts.setdefault(key, piece)
    return [Passage(key, text) for key, text in texts.items()]


def _sources() -> Iterator[tuple[str, Path]]:
    root = Path(sysconfig.get_path("stdlib"))
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT and name.isidentifier())
        for file in sorted(files):
            path = Path(folder, file)
            module = path.relative_to(root).with_suffix("").parts
            if path.suffix == ".py" and not _LEFT_OUT.intersection(module) and module[-1] != "__main__":
                yield ".".join(module[:-1] if module[-1] == "__init__" else module), path


def _read(name: str, path: Path) -> Module:
    tree = ast.parse(path.read_bytes())
    module = Module(name, [], [], _literal_all(tree))
    if doc := ast.get_docstring(tree):
        module.docs.append((name, doc))
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    _walk(tree.body, name, package, module)
    return module


def _walk(body: Iterable[ast.stmt], prefix: str, package: str, module: Module) -> None:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}.{node.name}"
            if doc := ast.get_docstring(node):
                module.docs.append((name, doc))
            if isinstance(node, ast.ClassDef):
                _walk(node.body, name, package, module)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            module.imports.extend((origin, alias.name) for alias in node.names if alias.asname in (None, alias.name))
        elif isinstance(node, ast.If | ast.Try):  # definitions that depend on the platform
            handlers = [handler.body for handler in node.handlers] if isinstance(node, ast.Try) else []
            for block in (node.body, *handlers, node.orelse):
                _walk(block, prefix, package, module)


def _literal_all(tree: ast.Module) -> frozenset[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            names = getattr(node.value, "elts", [])
            values = (item.value for item in names if isinstance(item, ast.Constant))
            return frozenset(value for value in values if isinstance(value, str))
    return None


def _compiled(have_source: set[str]) -> Iterator[ModuleType]:
    for name in sorted(sys.stdlib_module_names - have_source - _LEFT_OUT):
        if "test" in name or name.startswith("_xx"):
            continue
        # Only what is compiled: a script of that name beside the job must not run because its name was read.
        spec = importlib.util.find_spec(name)
        if spec is None or not (spec.origin == "built-in" or isinstance(spec.loader, ExtensionFileLoader)):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some are deprecated; their documentation still counts
            try:
                yield importlib.import_module(name)
            except ImportError:  # a library it needs is not on this machine
                continue


def _inspect(module: ModuleType) -> Module:
    read = Module(module.__name__, [], [], None)
    read.docs.append((module.__name__, inspect.cleandoc(module.__doc__ or "")))
    for name, value in sorted(vars(module).items()):
        if name.startswith("_") or not (inspect.isbuiltin(value) or inspect.isclass(value)):
            continue
        read.docs.append((f"{module.__name__}.{name}", _doc(value)))
        if inspect.isclass(value):
            methods = sorted((key, item) for key, item in vars(value).items() if not key.startswith("_"))
            read.docs.extend((f"{module.__name__}.{name}.{key}", _doc(item)) for key, item in methods)
    return read


def _doc(value: object) -> str:
    doc = getattr(value, "__doc__", None)
    return inspect.cleandoc(doc) if isinstance(doc, str) else ""


def _topics() -> Iterator[tuple[str, str]]:
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    seen: set[str] = set()
    # Whole chapters repeat their sections ("compound" holds "with"): the shortest topic keeps a shared paragraph.
    for name in sorted(topics, key=lambda name: (len(topics[name]), name)):
        own = [paragraph for paragraph in topics[name].strip().split("\n\n") if _first_time(paragraph, seen)]
        for number, piece in enumerate(cut("\n\n".join(own), PIECE_CHARS), 1):
            yield f"topic:{name}#{number}", piece


def _first_time(paragraph: str, seen: set[str]) -> bool:
    key = " ".join(paragraph.split())
    known = key in seen
    seen.add(key)
    return not known


def _numbered(name: str, doc: str) -> Iterator[tuple[str, str]]:
    if len(doc.split()) < 2:  # "Helper." tells nobody anything
        return
    for number, piece in enumerate(cut(doc, LONG_CHARS), 1):
        yield name if number == 1 else f"{name}#{number}", piece


def cut(text: str, size: int) -> list[str]:
    """Cut a text at blank lines into pieces of about ``size`` characters; a longer paragraph stays whole."""
    pieces: list[str] = []
    for paragraph in text.split("\n\n"):
        if pieces and len(pieces[-1]) + len(paragraph) < size:
            pieces[-1] += "\n\n" + paragraph
        elif paragraph.strip():
            pieces.append(paragraph)
    return pieces
