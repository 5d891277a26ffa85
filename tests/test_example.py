import runpy
from pathlib import Path

import pytest


def test_the_example_trains_and_plays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(Path(__file__).parent.parent / "examples" / "own_project.py"))
    example["main"](str(tmp_path), 2, 40)
    printed = capsys.readouterr().out
    assert "eval/syntax_accuracy" in printed
    assert list((tmp_path / "data").glob("*.parquet"))
