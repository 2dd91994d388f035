"""On what kind of file system a folder is."""

from __future__ import annotations

import os
from typing import Final

__all__ = ["weak_mount"]

_WEAK: Final = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "fuse.sshfs", "fuse.s3fs", "overlay")
_MOUNTS: Final = "/proc/self/mountinfo"


def weak_mount(directory: str, mounts: str = _MOUNTS) -> str | None:
    """The kind of file system, where its locks or its promises about a loss of power are weak; else ``None``.

    Args:
        mounts: The system's list of mounts; where there is none, nothing is known.
    """
    try:
        with open(mounts, encoding="utf-8", errors="replace") as file:
            lines = [line.split() for line in file]
    except OSError:
        return None
    best, kind = "", ""
    for line in lines:
        # ID parent device root MOUNT-POINT options [optional fields] - TYPE source options
        point = line[4].replace("\\040", " ")
        inside = directory == point or directory.startswith(point.rstrip("/") + os.sep)
        if inside and len(point) >= len(best):
            best, kind = point, line[line.index("-") + 1]
    return kind if kind in _WEAK else None
