"""Deliberate edits of a dump by hand, signed so that no checksum stands before what a test is about."""

import json
from typing import Any

from shared.dump.integrity.checksums import write_checksums
from shared.storage import Folder, Place


def edit_manifest(dump: Place, **changes: Any) -> None:
    """Change entries of a dump's manifest."""
    path = Folder.of(dump) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    sign(dump)


def sign(dump: Place) -> None:
    """Write the checksums of a dump's files as they are now, whether they make sense or not."""
    write_checksums(Folder.of(dump), (Folder.of(dump) / "manifest.json").read_text())
