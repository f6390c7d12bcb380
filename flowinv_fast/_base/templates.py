"""Pages that are typed in a file of their own, with holes for values."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from string import Template

_CONDITION = re.compile(r"\{(\w+)\}")


def filled(path: Path, values: Mapping[str, object], conditions: Collection[str] = ()) -> str:
    """The text of a template with its values in place.

    ``$word`` stands for a value. A line that starts with ``{word}`` is kept where ``word`` is among
    the conditions, without that start, and left out elsewhere.

    Args:
        path: of the template, UTF-8.
        values: one for every ``$word`` of the lines that are kept; more do no harm. What they hold
            is not searched for further holes.
        conditions: words that hold.
    Raises:
        KeyError: a hole without a value.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "page.md"
    ...     count = path.write_text("{short}Short.\\n{long}Long: $words words.\\n")
    ...     filled(path, {"words": 3}, {"long"})
    'Long: 3 words.\\n'
    """
    kept = []
    for line in path.read_text("utf-8").splitlines(keepends=True):
        condition = _CONDITION.match(line)
        if condition is None:
            kept.append(line)
        elif condition[1] in conditions:
            kept.append(line[condition.end() :])
    return Template("".join(kept)).substitute(values)
