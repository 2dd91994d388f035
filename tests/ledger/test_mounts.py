"""Where locks, and what a disk promises about a loss of power, are weak: that is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_job import at_once
from real_files import Place

from stageflow.ledger import opening
from stageflow.ledger.mounts import weak_mount

MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:30 / /data rw shared:2 master:1 - nfs4 server:/data rw
31 30 8:2 / /data/fast rw - ext4 /dev/sdb1 rw
32 22 0:31 / /my\\040share rw - cifs //server/share rw
33 22 0:32 / /database rw - xfs /dev/sdc rw
"""


@pytest.mark.parametrize(
    ("directory", "kind"),
    [
        ("/", None),
        ("/data", "nfs4"),
        ("/data/runs", "nfs4"),
        ("/data/fast/runs", None),
        ("/database", None),
        ("/my share/runs", "cifs"),
        ("/home", None),
    ],
)
def test_row_35_a_file_system_with_weak_promises_is_told(tmp_path: Path, directory: str, kind: str | None) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert weak_mount(directory, str(mounts)) == kind


def test_row_35_where_mounts_are_not_known_nothing_is_said(tmp_path: Path) -> None:
    assert weak_mount("/", str(tmp_path / "none")) is None


def test_row_35_the_note(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "weak_mount", lambda directory: "nfs")
    output, resumption = place.open()
    assert resumption.notes == [f"{place.out} is on nfs, where locks and safety against loss of power are weaker"]
    at_once(output.close(complete=False))
