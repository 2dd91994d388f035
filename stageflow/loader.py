"""From ``path.py``, ``path.py:name`` or ``package.module:name`` to a pipeline, with errors at the job's own lines.

A job is code and is run with the rights of whoever loads it, by ``check`` and ``graph`` too.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType

from stageflow.errors import DefinitionError, JobLoadError
from stageflow.graph import nearest
from stageflow.pipeline import Pipeline

__all__ = ["IMPORT_SECONDS", "Job", "import_file", "load"]

IMPORT_SECONDS = 30.0
"""After so long the user is told that it is their job which is still being imported, and nothing hangs here."""


@dataclass(frozen=True, slots=True)
class Job:
    """A loaded job: its pipeline, and the folder where ``stageflow.toml`` may stand."""

    pipeline: Pipeline
    folder: Path


def load(reference: str) -> Job:
    """Load a job.

    Raises:
        JobLoadError: There is no such file or module, it does not compile, it raises or exits while it is imported, or
            holds no pipeline, or several and none was named.
        DefinitionError: The job file refused itself: a setting out of range, for instance.
    """
    target, name = _split(reference)
    if target.endswith(".py") or os.sep in target or Path(target).is_file():
        path = Path(target)
        if not path.is_file():
            raise JobLoadError(f"cannot read job {target}: no such file", hint=_nearby(path))
        file, shown = path.resolve(), path.name
        importing = functools.partial(import_file, f"stageflow_job_{path.stem}", str(file))
        pipeline = _pick(_guarded(importing, shown, file.parent), name, shown)
        pipeline._prepare = importing
        pipeline._reference = f"{file}:{name}" if name else str(file)
        pipeline._draft.file = str(file)  # wherever in the job's own modules it is made
        return Job(pipeline, file.parent)
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    module = _guarded(functools.partial(importlib.import_module, target), target, Path.cwd())
    pipeline = _pick(module, name, target)
    pipeline._reference = reference
    if not module.__file__:
        return Job(pipeline, Path.cwd())
    pipeline._draft.file = str(Path(module.__file__).resolve())
    return Job(pipeline, Path(module.__file__).resolve().parent)


def import_file(name: str, path: str) -> ModuleType:
    """Import a file under a name of ours, its folder importable. In a worker process too, so it can be pickled by name.

    The name can't hide a module of the standard library, whatever the file is called.
    """
    known = sys.modules.get(name)
    if known is not None and known.__file__ == path:
        return known
    folder = os.path.dirname(path)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    loader = importlib.machinery.SourceFileLoader(name, path)  # named, because the file need not end in .py
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None, "a loader was given"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _split(reference: str) -> tuple[str, str | None]:
    target, colon, name = reference.rpartition(":")
    if colon and target and os.sep not in name:
        return target, name
    return reference, None


def _nearby(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path()
    near = nearest(path.name, [p.name for p in folder.glob("*.py")])
    return f"did you mean {folder / near}?" if near else "JOB is path.py, path.py:name or package.module:name"


def _guarded(importing: functools.partial[ModuleType], shown: str, folder: Path) -> ModuleType:
    """Import, and put whatever goes wrong in terms of the job's own lines."""
    try:
        with _watched(shown):
            return importing()
    except DefinitionError:
        raise
    except SyntaxError as error:
        place = os.path.basename(error.filename or shown) + (f":{error.lineno}" if error.lineno else "")
        caret = f"{(error.text or '').rstrip()}\n{' ' * ((error.offset or 1) - 1)}^" if error.text else ""
        raise JobLoadError(
            f"{error.msg}" + (f"\n{caret}" if caret else ""), where=place, hint="mend the line"
        ) from None
    except ModuleNotFoundError as error:
        if f"{importing.args[0]}.".startswith(f"{error.name}."):
            raise JobLoadError(
                f'there is no module "{error.name}"', hint="JOB is path.py, path.py:name or package.module:name"
            ) from None
        raise JobLoadError(
            f'cannot import "{error.name}"',
            where=_place(error.__traceback__, folder) or shown,
            hint=f"is it installed in this environment? ({sys.executable} -m pip install ...)",
        ) from None
    except SystemExit as error:
        raise JobLoadError(
            f"the job called sys.exit({error.code!r}) while it was imported",
            where=_place(error.__traceback__, folder) or shown,
            hint='put it under `if __name__ == "__main__":`',
        ) from None
    except Exception as error:
        where = _place(error.__traceback__, folder) or shown
        whole = shown if shown.endswith(".py") else f"-m {shown}"
        raise JobLoadError(
            f"{type(error).__name__} while the job was imported: {_message(error)}",
            where=where,
            hint=f"python {whole} shows the whole traceback",
        ) from error


@contextlib.contextmanager
def _watched(shown: str) -> Iterator[None]:
    """Say so, once, where an import takes long: a model that is loaded at the top level, or one that hangs."""

    def tell() -> None:
        # In one write, since the job may write too; where stderr is closed the import goes on all the same.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(
                f"stageflow: {shown} is still being imported after {IMPORT_SECONDS:g} s; "
                "its top level runs before any record\n"
            )
            sys.stderr.flush()

    timer = threading.Timer(IMPORT_SECONDS, tell)
    timer.name, timer.daemon = "stageflow-import", True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def _message(error: Exception) -> str:
    """What an error says, on one line; one whose ``__str__`` raises is no second failure."""
    try:
        return " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - the job's own code
        return "(its message can't be read)"


def _place(trace: TracebackType | None, folder: Path) -> str | None:
    """The innermost line of the job's own files in a traceback."""
    own = [
        f
        for f in traceback.extract_tb(trace)
        if f.filename.startswith(str(folder)) and "site-packages" not in f.filename
    ]
    return f"{os.path.basename(own[-1].filename)}:{own[-1].lineno}" if own else None


def _pick(module: ModuleType, name: str | None, shown: str) -> Pipeline:
    found = {key: value for key, value in vars(module).items() if isinstance(value, Pipeline)}
    if name is not None:
        if name not in found:
            near = nearest(name, found)
            hint = f"did you mean {shown}:{near}?" if near else "pipelines there: " + (", ".join(found) or "none")
            raise JobLoadError(f'{shown} has no pipeline "{name}"', hint=hint)
        return found[name]
    if not found:
        raise JobLoadError(f"{shown} has no pipeline", hint='it needs one: pipeline = Pipeline("name")')
    if len({id(pipeline) for pipeline in found.values()}) > 1:
        places = ", ".join(f"{key} ({pipeline._draft.where})" for key, pipeline in found.items())
        raise JobLoadError(f"{shown} has several pipelines: {places}", hint=f"name one: {shown}:{next(iter(found))}")
    return next(iter(found.values()))
