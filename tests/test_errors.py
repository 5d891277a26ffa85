"""What the command says of an error."""

import pytest

from lightning_vlmq.errors import one_line

TRIED = """Parser key "trainer.callbacks":
  Does not validate against any of the Union subtypes
  Subtypes: [list[lightning.pytorch.callbacks.callback.Callback], <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'lightning_vlmq.callbacks.EpisodeEvaluation':
        Option 'episods' is not accepted
    - {other}
    - Expected a <class 'NoneType'>
  Given value type: <class 'list'>
  Given value: [Namespace(class_path='lightning_vlmq.callbacks.TargetCriticEMA')]"""

SUBCLASS = """Not a valid subclass of Callback
      Subclass types expect one of:
      - a class path (str)
      - a dict with class_path entry"""

BASE = """Problem with given class_path 'lightning.Callback':
        Option 'episods' is not accepted"""


@pytest.mark.parametrize("other", [SUBCLASS, BASE])
def test_only_the_reason_is_left_of_what_was_tried(other: str) -> None:
    assert one_line(TRIED.format(other=other)) == (
        "Parser key \"trainer.callbacks\": Problem with given class_path 'lightning_vlmq.callbacks.EpisodeEvaluation': "
        "Option 'episods' is not accepted; see `vlmq fit --help`, and --model.help or --data.help with a class_path"
    )


def test_what_is_unknown_comes_with_the_way_to_what_is_known() -> None:
    assert one_line("unrecognized arguments: --foldr x").startswith("unrecognized arguments: --foldr x; see `vlmq fit")
