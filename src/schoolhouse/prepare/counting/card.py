"""The page of `prepare.coverage`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from schoolhouse.prepare.counting.columns import MISSING, NAMED, RARE
from schoolhouse.prepare.counting.rates import SURE, Rate

if TYPE_CHECKING:
    from schoolhouse.prepare.coverage import Cell, Config


def card(
    config: Config, found: Mapping[str, Any], cells: Sequence[Cell], rates: Sequence[Rate], errors: Sequence[Rate]
) -> str:
    """The page: warnings first, then who is there, then what differs. found: what coverage.json holds."""
    counted = [
        f"| {_cell(cell.group)} | {_cell(cell.value)} | {cell.rows:,} | {cell.share:.1%} | {cell.persons:,} | "
        f"{cell.held_out:,} | {'thin' if cell.thin else ''} |"
        for cell in cells
    ]
    lines = [
        "# Who is in the data", "",
        f"{found['rows']:,} rows of {found['persons']:,} persons (a row that is nobody's counts as one), "
        f"{found['held_out']:,} rows of them held out.", "",
        "## Warnings", "",
        *(f"- {_cell(warning)}" for warning in found["warnings"] or ["none"]), "",
        "## Groups", "",
        "| group | value | rows | share | persons | held out | |", "|---|---|---|---|---|---|---|", *counted, "",
        f"- {MISSING}: the row does not say. {RARE}: values that fewer than {NAMED} persons share; none is named.",
        f"- thin: fewer than {config.thin} rows, or less than {config.thin_share:.1%} of all.", "",
    ]  # fmt: skip
    if rates:
        lines += [f"## {_cell(str(config.outcome))} by group", "", *_table(rates)]
    if errors:
        without = found["verdicts_without_group"]
        note = f"{without} verdicts are left out, since nothing is known of their questions." if without else ""
        lines += ["## Errors of the exam by group", "", *_table(errors), *([note, ""] if note else [])]
    if rates or errors:
        lines += [
            '- Intervals are 95% score intervals (Wilson). Several rows of one person count as fewer: "worth" says as '
            "how many independent ones (Rao and Scott).",
            f"- Each group is compared with all other rows. **Bold**: a difference that has p < {SURE:g} among all "
            "comparisons of its table together (Holm). Without points: too few, or two groups of which one is enough.",
            "- A difference says that groups differ, not why.", "",
        ]  # fmt: skip
    return "\n".join(lines)


def _table(rates: Sequence[Rate]) -> list[str]:
    head = ["| what | group | value | rows | worth | rate | 95% | points more than the others | p |", "|" + "---|" * 9]
    return [*head, *map(_line, rates), ""]


def _line(rate: Rate) -> str:
    compared, p_value = "", ""
    if rate.points is not None and rate.p_value is not None:
        compared = f"{rate.points:+.1f} ({rate.points_low:+.1f} to {rate.points_high:+.1f})"
        compared = f"**{compared}**" if rate.flagged else compared
        p_value = "< 0.001" if rate.p_value < 0.001 else f"{rate.p_value:.3f}"
    return (
        f"| {_cell(rate.what)} | {_cell(rate.group)} | {_cell(rate.value)} | {rate.rows:,} | {rate.worth:,.0f} | "
        f"{rate.rate:.1%} | {rate.low:.1%} to {rate.high:.1%} | {compared} | {p_value} |"
    )


def _cell(text: str) -> str:
    """A value of the data as a cell of a table: nothing in it is read as a mark."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
