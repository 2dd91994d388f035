"""Which files of a job's folder its replicas are sent.

A job imports its neighbours and reads small files that lie beside it, so the whole folder goes. Not what has a hidden
name (a repository, a virtual environment, a file of secrets), what Python makes by itself, and what is large: inputs
and outputs, which a replica reads from where they are, or which are nothing to it.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stageflow.errors import RequestError
from stageflow.work import JobOrigin

__all__ = ["LARGE_BYTES", "Shipment", "is_file", "origin_there"]

LARGE_BYTES: Final = 10 << 20
"""A file that is larger stays here."""

_MOST_FILES: Final = 10_000
_MOST_BYTES: Final = 200 << 20
_NEVER: Final = {"__pycache__", "node_modules", "site-packages", "venv"}
_OWN: Final = "_stageflow"
"""What an output holds beside its parts."""


@dataclass(frozen=True, slots=True)
class Shipment:
    """The files of a folder that are sent, by their paths in it.

    Args:
        left_out: Those that are too large, with their sizes in bytes.
    """

    folder: Path
    files: tuple[Path, ...]
    left_out: tuple[tuple[Path, int], ...]

    @classmethod
    def of(cls, folder: Path) -> Shipment:
        """Look what is there.

        Raises:
            RequestError: It is more than a job's folder can reasonably hold.
        """
        files: list[Path] = []
        left_out: list[tuple[Path, int]] = []
        total = 0
        for path, size in _files_in(folder):
            if size > LARGE_BYTES:
                left_out.append((path, size))
                continue
            files.append(path)
            total += size
            if len(files) > _MOST_FILES or total > _MOST_BYTES:
                raise RequestError(
                    f"the job's folder {folder} holds more than {_MOST_FILES:,} files or {_MOST_BYTES >> 20} MB, "
                    "and all of it would be sent to every node",
                    hint="put the job, and what it imports, into a folder of its own",
                )
        return cls(folder, tuple(files), tuple(left_out))

    def lay_out(self, target: Path) -> None:
        """Copy them."""
        for path in self.files:
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.folder / path, target / path)


def _files_in(folder: Path) -> Iterator[tuple[Path, int]]:
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if _wanted(Path(here, name)))
        for name in sorted(names):
            path = Path(here, name)
            if not name.startswith(".") and not name.endswith(".pyc") and path.is_file():
                yield path.relative_to(folder), path.stat().st_size


def _wanted(folder: Path) -> bool:
    name = folder.name
    if name.startswith(".") or name in _NEVER or name.endswith(".egg-info"):
        return False
    return not (folder / "pyvenv.cfg").exists() and not (folder / _OWN).is_dir()


def origin_there(origin: JobOrigin, folder: Path) -> JobOrigin:
    """Where a process finds the job whose working folder holds what this folder does.

    Raises:
        RequestError: The job's file is not in the folder.
    """
    target, name = _split(origin.reference)
    if not is_file(origin.reference):
        return origin  # a module, which is found by its name
    try:
        inside = Path(target).resolve().relative_to(folder.resolve())
    except ValueError:
        raise RequestError(f"the job {target} is not in the folder that is sent to the nodes, {folder}") from None
    there = f".{os.sep}{inside}"
    return dataclasses.replace(origin, reference=f"{there}:{name}" if name else there)


def is_file(reference: str) -> bool:
    """Whether a job is referred to by its file, and not as a module."""
    target, _ = _split(reference)
    return target.endswith(".py") or os.sep in target or Path(target).is_file()


def _split(reference: str) -> tuple[str, str]:
    target, colon, name = reference.rpartition(":")
    return (target, name) if colon and os.sep not in name else (reference, "")
