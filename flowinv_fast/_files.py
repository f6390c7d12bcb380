"""Files that appear whole or not at all."""

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
