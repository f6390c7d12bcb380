"""Files that appear whole or not at all, and where a user's own go."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside ``path``, with its suffix; it takes the place of ``path`` at the end.

    Where the block raises, the temporary goes and ``path`` stays as it was. The file gets the
    permissions that open() would give: safetensors lets only the owner read.
    """
    path = Path(path)
    temporary = path.with_suffix(f".tmp{path.suffix}")
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def user_folder() -> Path:
    """Where a user's own weights go: FLOWINV_DATA, or flowinv_fast below XDG_DATA_HOME."""
    if os.environ.get("FLOWINV_DATA"):
        return Path(os.environ["FLOWINV_DATA"])
    return (
        Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "flowinv_fast"
    )
