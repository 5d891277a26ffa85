"""The sheet as a table in the terminal, as ``prompting.md`` and as the chart ``prompting.png``."""

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from rich.console import Console
from rich.table import Table

from lightning_vlmq.drawing.charts import Bar, Panel, Series, bar_chart
from lightning_vlmq.files import write_atomic
from lightning_vlmq.prompting.cells import Cell, Result, Sheet
from lightning_vlmq.prompts import AnyActionPrompt

__all__ = ["print_sheet", "write_report"]

_HEADERS = (
    "model",
    "action prompt",
    "thought",
    "syntax accuracy, %",
    "goal reached, %",
    "return > 0, %",
    "mean return",
    "tokens a reply",
    "cut, %",
)
_INTERVALS = (
    ("syntax_accuracy", 100, ".1f"),
    ("goal_reached", 100, ".1f"),
    ("return_above_0", 100, ".1f"),
    ("mean_return", 1, ".2f"),
    ("tokens_a_reply", 1, ".1f"),
)
_SERIES: dict[tuple[AnyActionPrompt, bool], Series] = {
    ("agent", False): Series("agent", "#3b6fb6"),
    ("agent", True): Series("agent, thought", "#3b6fb6", hatched=True),
    ("minimum", False): Series("minimum", "#e08a2e"),
    ("minimum", True): Series("minimum, thought", "#e08a2e", hatched=True),
    ("random", False): Series("random valid actions", "#888888"),
}


def print_sheet(sheet: Sheet, console: Console | None = None) -> None:
    """Prints the table, one row a cell, and why models have none."""
    # a log has no width of its own: wide enough that no cell is wrapped
    console = console or Console(width=None if sys.stdout.isatty() else 165)
    table = Table(title=_title(sheet), caption=_settings(sheet))
    for number, header in enumerate(_HEADERS):
        table.add_column(header, justify="left" if number < 3 else "right")
    for row in _rows(sheet):
        table.add_row(*row)
    console.print(table)
    for line in _failures(sheet):
        console.print(line, markup=False)


def write_report(sheet: Sheet) -> tuple[Path, Path]:
    """Writes ``prompting.md`` and ``prompting.png`` beside the sheet's file and returns their paths."""
    markdown, picture = sheet.path.with_suffix(".md"), sheet.path.with_suffix(".png")
    write_atomic(markdown, _markdown(sheet).encode())
    buffer = io.BytesIO()
    _chart(sheet).save(buffer, format="PNG")
    write_atomic(picture, buffer.getvalue())
    return markdown, picture


def _title(sheet: Sheet) -> str:
    return f"Prompting only: {sheet.settings['env']}"


def _settings(sheet: Sheet) -> str:
    get = sheet.settings
    thinking = get["max_reply_tokens"] + get["thought_tokens"]
    return (
        f"{get['episodes']} episodes a cell, the same in each; temperature {get['temperature']:g}; seed {get['seed']}; "
        f"replies of at most {get['max_reply_tokens']} tokens, {thinking} with a thought; in brackets 95 % intervals"
    )


def _ordered(sheet: Sheet) -> list[tuple[Cell, Result]]:
    """Models as they were first played, of each the action prompts in their order; what needs no model last."""
    models = [*dict.fromkeys(cell.model for cell in sheet.results if cell.model), ""]
    return sorted(
        sheet.results.items(),
        key=lambda item: (models.index(item[0].model), list(_SERIES).index(_kind(item[0]))),
    )


def _labels(sheet: Sheet) -> dict[str, str]:
    """The shortest end of each model's path that no other one has."""
    models = dict.fromkeys([*(cell.model for cell in sheet.results if cell.model), *sheet.failed])
    parts = {model: model.rstrip("/").split("/") for model in models if model}
    labels = {"": "no model", **dict.fromkeys(parts, "")}
    for depth in range(1, 1 + max((len(each) for each in parts.values()), default=0)):
        ends = {model: "/".join(each[-depth:]) for model, each in parts.items()}
        for model, end in ends.items():
            if not labels[model] and list(ends.values()).count(end) == 1:
                labels[model] = end
    return {model: label or model for model, label in labels.items()}


def _rows(sheet: Sheet) -> list[list[str]]:
    labels, rows = _labels(sheet), []
    for cell, result in _ordered(sheet):
        numbers: dict[str, Any] = {**result.scores, "tokens_a_reply": result.tokens_a_reply}
        row = [labels[cell.model], cell.action_prompt, _thought(cell)]
        for name, scale, form in _INTERVALS:
            low, high = (scale * end for end in result.intervals[name])
            row.append(f"{scale * numbers[name]:{form}} ({low:{form}} to {high:{form}})")
        rows.append([*row, f"{100 * result.cut:.1f}"] if cell.model else [*row[:-1], "-", "-"])
    unplayed = [[labels[model], "not played", *[""] * (len(_HEADERS) - 2)] for model in sheet.failed]
    return rows + unplayed


def _thought(cell: Cell) -> str:
    return ("on" if cell.thought else "off") if cell.model else "-"


def _failures(sheet: Sheet) -> list[str]:
    return [f"{model or 'random'} was not played: {reason}" for model, reason in sheet.failed.items()]


def _markdown(sheet: Sheet) -> str:
    labels = _labels(sheet)
    lines = [f"# {_title(sheet)}", "", f"{_settings(sheet)}.", "", _row(_HEADERS), _row(["---"] * len(_HEADERS))]
    lines += [_row(row) for row in _rows(sheet)] + [""]
    lines += [*(f"- {line}" for line in _failures(sheet)), ""] if sheet.failed else []
    lines += ["![The table as a chart](prompting.png)", "", "What was replied most:", ""]
    lines += [_row(["model", "action prompt", "thought", "replies"]), _row(["---"] * 4)]
    for cell, result in _ordered(sheet):
        total = result.scores["turns"]
        replies = ", ".join(f"{_quoted(reply)} {100 * count / total:.0f} %" for reply, count in result.replies)
        lines.append(_row([labels[cell.model], cell.action_prompt, _thought(cell), replies]))
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _quoted(reply: str) -> str:
    """A reply as code in a cell of a Markdown table."""
    short = json.dumps(reply if len(reply) <= 80 else reply[:79] + "…", ensure_ascii=False)
    return "`" + short.replace("`", "'").replace("|", "\\|") + "`"


def _chart(sheet: Sheet) -> Image.Image:
    groups: dict[str, list[tuple[Cell, Result]]] = {}
    for cell, result in _ordered(sheet):
        groups.setdefault(cell.model, []).append((cell, result))
    kinds = sorted({_kind(cell) for cell in sheet.results}, key=list(_SERIES).index)

    def bars(name: Literal["syntax_accuracy", "goal_reached"]) -> list[list[Bar]]:
        return [
            [Bar(kinds.index(_kind(cell)), result.scores[name], *result.intervals[name]) for cell, result in group]
            for group in groups.values()
        ]

    panels = [
        Panel("Syntax accuracy", "share of replies", bars("syntax_accuracy")),
        Panel("Success: goal reached", "share of episodes", bars("goal_reached")),
    ]
    names = [_labels(sheet)[model] for model in groups]
    return bar_chart(
        _title(sheet), [_SERIES[kind] for kind in kinds], names, panels, "model (whiskers: 95 % intervals)"
    )


def _kind(cell: Cell) -> tuple[AnyActionPrompt, bool]:
    return cell.action_prompt, cell.thought
