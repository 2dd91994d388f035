"""Where the output of a run past one machine is kept: a folder that all machines see, or a bucket."""

from __future__ import annotations

from stageflow.errors import RequestError
from stageflow.stores.base import Store
from stageflow.stores.local import LocalStore
from stageflow.stores.objects import SCHEMES, ObjectStore

__all__ = ["LocalStore", "ObjectStore", "Store", "store_of"]


def store_of(url: str) -> Store:
    """The store at an address: ``s3://``, ``gs://``, ``az://``, or a folder. Nothing is asked of it yet.

    Raises:
        RequestError: The address is of another kind, or what reaches it is not installed.
    """
    scheme, found, _ = url.partition("://")
    if not (found and scheme.isalnum()):
        return LocalStore(url)
    if scheme not in SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise RequestError(f"can't keep an output behind {scheme}://", hint=f"give a folder, or an address of {known}")
    return ObjectStore(url)
