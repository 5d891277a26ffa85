"""The longest batch of a configuration: turns of its environment, encoded by the model's own processor."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lightning_vlmq.batches import TokenBatch, TurnEncoder
from lightning_vlmq.datamodules import Demonstrations
from lightning_vlmq.features import FeatureCache, opened
from lightning_vlmq.pictures import EncodedImage
from lightning_vlmq.policy import RandomPolicy
from lightning_vlmq.rollout import play
from lightning_vlmq.shapes import shapes
from lightning_vlmq.store import TurnStore
from lightning_vlmq.turns import Observation, Turn
from lightning_vlmq.vlm import VLM

__all__ = ["LongestTurns"]

_EPISODES = 4


class LongestTurns:
    """Batches whose turns all have the longest prompt that was seen and the longest reply that is allowed.

    Every one of them goes on, so that the next turn's value is needed, too.

    Args:
        vlm: A model of shapes.
        data: Where environment, prompt and lengths are configured.

    Raises:
        ValueError: There is neither an environment to play nor a turn in the folder.
    """

    def __init__(self, vlm: VLM, data: Demonstrations) -> None:
        features = _Encoded(vlm)
        self._encoder = TurnEncoder(vlm, data.prompt, features=features, max_reply_tokens=data.max_reply_tokens)
        turns = _some_turns(data)
        with shapes():
            lengths = {t.observation: len(self._encoder.prompt_ids(t.observation)[0]) for t in turns}
        self._turn = max(turns, key=lambda turn: lengths[turn.observation])
        self.prompt_tokens = lengths[self._turn.observation]
        self.reply_tokens = data.max_reply_tokens

    def batch(self, size: int) -> TokenBatch:
        """A batch of so many turns; its pictures' features are shapes, all else has numbers.

        One reply is shorter by a token: with nothing to pad, attention takes less than it does in a fit.
        """
        token = self._encoder.vlm.stop_ids[0]  # any one will do
        turn = replace(
            self._turn,
            reply_ids=(token,) * self.reply_tokens,
            tokenizer=self._encoder.tokenizer_fingerprint,
            terminated=False,
            valid=True,
            imitate=True,
            td=True,
            weight=1.0,
        )
        with shapes():
            shorter = replace(turn, reply_ids=turn.reply_ids[1:] or turn.reply_ids)
            return self._encoder.batch([turn, *[shorter] * (size > 1), *[turn] * (size - 2)], [turn] * size)

    def pictures(self, number: int) -> list[Any]:
        """So many of the prompt's pictures, or none where it shows none."""
        shown = [opened(image) for image in self._encoder.prompt.images(self._turn.observation)]
        return (shown * number)[:number]


class _Encoded(FeatureCache):
    """What a tower of shapes makes of pictures: nothing that is worth keeping beyond this object."""

    def __init__(self, vlm: VLM) -> None:
        self.vlm = vlm
        self._found: dict[tuple[bytes, bool], EncodedImage] = {}

    def __call__(self, images: Sequence[bytes], crowd: Sequence[bool] | None = None) -> list[EncodedImage]:
        keys = list(zip(images, crowd or [False] * len(images), strict=True))
        for image, many in keys:
            if (image, many) not in self._found:
                (self._found[image, many],) = self.vlm.image_features([opened(image)], crowd=many)
        return [self._found[key] for key in keys]


def _some_turns(data: Demonstrations) -> list[Turn]:
    if data.environment is not None:
        episodes = play(data.environment, [RandomPolicy()], range(_EPISODES), parallel=_EPISODES)
        found = [turn for episode in episodes for turn in episode.turns]
    elif any(data.folder.glob("*.parquet")):
        store = TurnStore(data.folder, skip_damaged=data.skip_damaged)
        found = [store[row] for row in range(min(len(store), 256))]
    else:
        raise ValueError(f"{data.folder} holds no turns to measure a batch by; give data.environment")
    return [replace(turn, reply="") for turn in found if turn.observation != Observation()]
