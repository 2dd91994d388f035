"""To a Ray cluster, with the job's files and stageflow itself sent to it."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import socket
import tempfile
from pathlib import Path
from typing import Any, Final

import stageflow
from stageflow.cluster.ray.shipping import Shipment
from stageflow.errors import RequestError

__all__ = ["connect", "is_submitted", "is_there", "refuse_client", "refuse_missing", "why"]

_OWN: Final = str(Path(stageflow.__file__).parent)
_ANSWER_SECONDS: Final = 10.0

_LONGEST: Final = 600
"""Characters of an error of Ray's that are shown."""

_SUBMITTED: Final = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Where `ray job submit` tells a driver what it has sent already."""


def refuse_missing() -> None:
    """See that Ray is installed, without loading it.

    Raises:
        RequestError: It is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise RequestError("Ray is not installed", hint="pip install 'stageflow[ray]'")


def refuse_client(address: str) -> None:
    """Refuse an address of a kind that does not do.

    Raises:
        RequestError: It is one.
    """
    if "://" in address:
        raise RequestError(
            f"{address} is an address of a Ray client, which can't drive a run",
            hint="run it on the cluster: ray job submit -- stageflow run ... --engine ray --address auto",
        )


def is_submitted() -> bool:
    """Whether this process was submitted to the cluster together with its folder, which is on every machine by now."""
    return "working_dir" in _submitted()


def connect(ray: Any, address: str, sent: Shipment, *, pip: str | None, cpus: float) -> None:
    """Connect this process to a cluster, and send the job's files there.

    Args:
        cpus: What the replicas need together; a cluster that is started here has as many.

    Raises:
        RequestError: There is no such cluster, it is of another version, or the files can't be sent.
    """
    if ray.is_initialized():
        raise RequestError("this process is connected to a Ray cluster already", hint="call ray.shutdown() before")
    if address == "auto":
        address = _found(ray)
    _refuse_silent(address)
    more: dict[str, Any] = {}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # what is tried out here is nobody's business
        more = {"num_cpus": max(int(cpus) + 1, os.cpu_count() or 1), "include_dashboard": False}
    logging.getLogger("ray").setLevel(logging.ERROR)  # among others, that its signals are left to us
    with tempfile.TemporaryDirectory(prefix="stageflow-") as folder:
        sent.lay_out(Path(folder))
        try:
            ray.init(
                address=address,
                namespace="stageflow",
                runtime_env=_environment(folder, pip),
                log_to_driver=False,
                configure_logging=False,
                **more,
            )
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise _refused(address, error) from error


def _refuse_silent(address: str) -> None:
    """Ray itself would try for more than a minute, and write its own log on the terminal."""
    if ":" not in address:
        return
    try:
        _knock(address)
    except (OSError, ValueError) as error:
        raise RequestError(
            f"there is no Ray cluster at {address}: {error}", hint="the address is that of its head, as HOST:PORT"
        ) from None


def _found(ray: Any) -> str:
    """The address of the cluster this machine belongs to, as Ray itself finds it; so that it can be seen to answer.

    Raises:
        RequestError: There is none.
    """
    try:
        return str(ray._private.services.canonicalize_bootstrap_address_or_die("auto"))
    except AttributeError:  # it is no public name; then Ray waits for a cluster that does not answer
        return "auto"
    except (ConnectionError, ValueError) as error:
        raise _refused("auto", error) from error


def is_there(ray: Any) -> bool:
    """Whether the head of the cluster is there that this process is connected to."""
    try:
        _knock(ray.get_runtime_context().gcs_address)
    except OSError:
        return False
    return True


def _knock(address: str) -> None:
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()


def _environment(folder: str, pip: str | None) -> dict[str, Any]:
    """What Ray is to bring to every machine, but for what was brought there when the driver was submitted.

    Stageflow goes along, so that it is the same one everywhere; by a path ahead of one that is installed there.
    """
    wanted: dict[str, Any] = {"working_dir": folder, "py_modules": [_OWN]}
    if pip is not None:
        wanted["pip"] = pip
    submitted = _submitted()
    return {name: value for name, value in wanted.items() if name not in submitted}


def _submitted() -> dict[str, Any]:
    """What Ray was asked to bring to every machine when this process was submitted to it."""
    return json.loads(os.environ.get(_SUBMITTED) or "{}").get("runtime_env") or {}


def _refused(address: str, error: Exception) -> RequestError:
    text = " ".join(str(error).split())
    if isinstance(error, ConnectionError):
        return RequestError(
            f"there is no Ray cluster at {address}: {text}",
            hint="`ray start --head` starts one; --address local is one for trying out",
        )
    if "ersion mismatch" in text:
        return RequestError(
            f"the Ray cluster at {address} does not suit: {text}",
            hint="install the same Ray and the same Python here as there",
        )
    return RequestError(f"the run can't begin on the Ray cluster at {address}: {text}")


def why(error: Exception) -> str:
    """What an error of Ray's comes to, on one line."""
    text = str(error).strip()
    if "creation task" in text:  # with a traceback of ours
        return text.splitlines()[-1]
    kind = type(error).__name__
    if kind == "ActorUnavailableError":
        return "its process, or its machine, does not answer"
    if "its node" in text:  # "... died because its node has died", "... has been preempted"
        return "its machine was lost"
    if kind == "ActorDiedError":
        return "its process died"
    return " ".join(text.split())[:_LONGEST] or kind
