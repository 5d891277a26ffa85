"""Vision-language models by prompting only: models x action prompts x thought on or off (figures 4 and 8)."""

from lightning_vlmq.prompting.cells import Cell, Result, Sheet
from lightning_vlmq.prompting.playing import Prompting
from lightning_vlmq.prompting.report import print_sheet, write_report

__all__ = ["Cell", "Prompting", "Result", "Sheet", "print_sheet", "write_report"]
