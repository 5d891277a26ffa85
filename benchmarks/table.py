"""Writes the tables of docs/benchmarks.md from the rows in ``benchmarks/results/``, so that none is typed by hand.

    python -m benchmarks.table

A table stands behind a line ``<!-- rows of NAME -->`` and ends with ``<!-- end -->``; everything else is left alone.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.rows import RESULTS, Row, read_rows

DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"
_PLACE = re.compile(r"(<!-- rows of (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Entry."""
    DOCUMENT.write_text(filled(DOCUMENT.read_text(), RESULTS))


def filled(text: str, results: Path) -> str:
    """A document with its tables anew; where a benchmark has no results yet, its table says so."""

    def tables(found: re.Match[str]) -> str:
        path = results / f"{found[2]}.json"
        return found[1] + (table(read_rows(path)) if path.is_file() else "Not measured yet.\n") + found[3]

    return _PLACE.sub(tables, text)


def table(rows: Sequence[Row]) -> str:
    """Rows as a table for each case; what they ran on stands below it."""
    lines = []
    for case in dict.fromkeys(each.case for each in rows):
        own = [each for each in rows if each.case == case]
        lines += [f"{case}:", "", "| | over | ratio: median (least, most) | demanded | medians |"]
        lines += ["|---|---|---|---|---|", *map(_line, own), ""]
        for said in dict.fromkeys((each.machine, each.n, tuple(each.versions.items())) for each in own):
            where, count, versions = said
            lines += [f"{where}; {count} rounds; {', '.join(' '.join(pair) for pair in versions)}.", ""]
    return "\n".join(lines)


def _line(of: Row) -> str:
    ratio = f"{_number(of.ratio_median)} ({_number(of.ratio_min)}, {_number(of.ratio_max)})"
    medians = f"{of.ours_median:g}, {of.other_median:g} {of.unit}"
    return f"| {of.ours} | {of.other} | {ratio} | {of.demanded} | {medians} |"


def _number(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}".lstrip("0")


if __name__ == "__main__":
    main()
