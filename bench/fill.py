"""Fills the marked holes of the documentation pages from the files in bench/results/.

    python bench/fill.py [--check]    --check: change nothing, fail if a page is out of date

A page is plain Markdown. A hole is what stands between two comments on lines of their own:

    <!-- table: NAME WORD ... -->
    <!-- /table -->

NAME is an entry of ``TABLES`` in tables.py or prior_tables.py, and the words are its arguments.
Everything outside the holes is typed in the page. The model cards ``docs/models/NAME.md`` are
written whole, from NAME.json and the template of the package.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import prior_tables
import tables
from tables import RESULTS, map_step_plot, newest, plot_name

from flowinv_fast.training.card_page import card_page

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
TABLES = {**tables.TABLES, **prior_tables.TABLES}
_HOLE = re.compile(r"(<!-- table: ([^\n]*?) -->\n).*?(<!-- /table -->)", re.DOTALL)


def filled(page: str) -> str:
    """The page with every hole filled anew.

    Raises:
        KeyError: a hole names no table.
    """

    def fill(hole: re.Match) -> str:
        name, *words = hole[2].split()
        lines = TABLES[name](RESULTS, *words)
        return f"{hole[1]}\n" + "\n".join(lines).strip("\n") + f"\n\n{hole[3]}"

    return _HOLE.sub(fill, page)


def pages(docs: Path) -> dict[Path, str]:
    """What every page with holes, and every model card, ought to be."""
    texts = {path: path.read_text() for path in sorted(docs.glob("*.md"))}
    wanted = {path: filled(text) for path, text in texts.items() if _HOLE.search(text)}
    for path in sorted((docs / "models").glob("*.json")):
        wanted[path.with_suffix(".md")] = card_page(json.loads(path.read_text()))
    return wanted


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare only")
    check = parser.parse_args(arguments).check
    wanted = pages(DOCS)
    stale = [p for p, text in wanted.items() if not p.exists() or p.read_text() != text]
    for path in stale:
        print("out of date:" if check else "wrote", path.relative_to(ROOT))
    if check:
        return int(bool(stale))
    for path in stale:
        path.write_text(wanted[path])
    for result in newest(RESULTS, "map_step"):
        map_step_plot(result, DOCS / plot_name(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
