"""Which files are read: names, patterns and addresses, each by its suffix as what it is."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from stageflow.errors import RequestError
from stageflow.graph import nearest
from stageflow.options import Options
from stageflow.protocols import Source

if TYPE_CHECKING:
    from stageflow.adapters.media import Medium

__all__ = ["Files", "chosen", "expanded", "is_url", "medium_of", "source_of_files", "sources_of_files"]

_COMPRESSED: Final = (".gz", ".zst", ".zstd")


@dataclass(frozen=True)
class Files:
    """Several files as one source, in this order; their records are numbered through.

    A list of strings is a source of strings, so several paths need this around them. A pattern such as
    ``"data/*.jsonl"`` stands for the files whose names match, sorted by name; ``**`` for any number of folders.

    Args:
        paths: Names, patterns and addresses; at least one.
    """

    paths: Sequence[str | os.PathLike[str]]

    def __init__(self, *paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> None:
        given: list[str | os.PathLike[str]] = []
        for path in paths:
            if isinstance(path, (str, os.PathLike)):
                given.append(path)
            else:
                given += path
        object.__setattr__(self, "paths", tuple(given))


def chosen(paths: Sequence[str]) -> str | Files:
    """What a command's INPUT stands for: one file as it is, else several."""
    return paths[0] if len(paths) == 1 and not _is_pattern(paths[0]) else Files(*paths)


def source_of_files(files: Files | str, options: Options, *, resumable: bool = True) -> Source:
    """A source of what the names stand for.

    Args:
        resumable: With marks. Several are read with them always, since they say where the next one begins.

    Raises:
        RequestError: There is no such file, or one is named twice.
    """
    paths = _paths_of(files)
    # One name is that file. A pattern may match more tomorrow: what it stands for is several from the beginning.
    if len(paths) == 1 and not isinstance(files, Files):
        return _source(paths[0], options, marked=resumable)
    from stageflow.adapters.chain import ChainedSource

    if options.max_input_bytes is not None and len(paths) > 1:
        raise RequestError("--max-input-bytes is for one input", hint=f"there are {len(paths)}; leave it out")
    return ChainedSource([_source(path, options) for path in paths])


def sources_of_files(files: Files | str, options: Options) -> list[Source]:
    """A source for each of the files that the names stand for, with marks.

    Raises:
        RequestError: As :func:`source_of_files`.
    """
    return [_source(path, options) for path in _paths_of(files)]


def _paths_of(files: Files | str) -> list[str]:
    given = [os.fspath(path) for path in files.paths] if isinstance(files, Files) else [files]
    if not given:
        raise RequestError("no input is given", hint="give at least one file")
    paths = [found for path in given for found in expanded(path)]
    _refuse_twice(paths)
    return paths


def expanded(path: str) -> list[str]:
    """The files a name stands for: itself, or what matches it.

    Raises:
        RequestError: Nothing matches.
    """
    if not _is_pattern(path):
        return [path]
    found = sorted(name for name in glob.glob(path, recursive=True) if not os.path.isdir(name))
    if found:
        return found
    folder, pattern = os.path.split(path)
    try:
        there = sorted(os.listdir(folder or "."))
    except OSError:
        there = []
    near = nearest(pattern, there)
    hint = f'did you mean "{os.path.join(folder, near)}"?' if near else f"look into {folder or '.'}"
    raise RequestError(f"no file matches {path}", hint=hint)


def is_url(path: str) -> bool:
    """Whether a path is an address, and no name of a file."""
    scheme, found, _ = path.partition("://")
    return bool(found) and scheme.isalnum()


def _is_pattern(path: str) -> bool:
    return path != "-" and not is_url(path) and glob.has_magic(path) and not os.path.lexists(path)


def _refuse_twice(paths: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for path in paths:
        real = path if is_url(path) else os.path.realpath(path)
        if real in seen:
            raise RequestError(f"{path} is given twice", hint="each file is read once; write each name once")
        seen[real] = path


def _source(path: str, options: Options, *, marked: bool = True) -> Source:
    """The source for one file, by its suffix."""
    match _suffix(path):
        case (".csv" | ".tsv") as suffix:
            from stageflow.adapters.separated import CsvSource

            delimiter = "\t" if suffix == ".tsv" else ","
            return CsvSource(path, delimiter=delimiter, max_input_bytes=options.max_input_bytes, medium=medium_of(path))
        case ".parquet" | ".pq":
            from stageflow.adapters.parquet import ParquetSource

            return ParquetSource(path, medium=medium_of(path))
        case _:
            from stageflow.adapters.jsonl import JsonlSource

            return JsonlSource(
                path,
                max_input_bytes=options.max_input_bytes,
                marked=marked,
                strict=options.strict,
                medium=medium_of(path),
            )


def medium_of(path: str) -> Medium:
    """What is read: a file of this machine, or an object behind an address."""
    if is_url(path):
        from stageflow.adapters.remote import RemoteObject

        return RemoteObject(path)
    from stageflow.adapters.media import LocalFile

    return LocalFile(path)


def _suffix(path: str) -> str:
    """What an input is named to be, compressed or not."""
    name = path.lower()
    for compressed in _COMPRESSED:
        name = name.removesuffix(compressed)
    return os.path.splitext(name)[1]
