"""Image features of a frozen vision tower, computed once per picture and kept on disk.

Keys hold the picture's bytes, the processor's settings and the weights of the tower, so that an entry can
not be stale; memory is bounded, and several processes may share one file. Of a tower that is trained nothing is kept
but the ids of pictures, in memory.
"""

import hashlib
import io
import sqlite3
import sys
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load, save
from torch import Tensor

from lightning_vlmq.files import lock
from lightning_vlmq.pictures import EncodedImage
from lightning_vlmq.vlm import VLM

__all__ = ["FeatureCache", "opened"]


class FeatureCache:
    """Encodes pictures with a VLM's vision tower and remembers the result; where it is trained, all but features.

    Args:
        vlm: The model whose vision tower encodes.
        path: SQLite file that keeps features across runs; ``None`` keeps them in memory only. None is made where the
            tower is trained.
        memory_mb: Bound of what is held in memory, in MB; the least recently used go first.
        batch_size: Pictures encoded at once.

    Raises:
        ValueError: The file is damaged.
    """

    def __init__(self, vlm: VLM, path: str | Path | None = None, *, memory_mb: int = 256, batch_size: int = 16) -> None:
        self.vlm = vlm
        self.batch_size = batch_size
        self.computed = 0
        self._model_key = "" if vlm.trains_vision_tower else vlm.vision_fingerprint
        self._memory: OrderedDict[str, EncodedImage] = OrderedDict()
        self._budget = memory_mb * 2**20
        self._held = 0
        self._file: sqlite3.Connection | None = None
        if path is not None and not vlm.trains_vision_tower:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            # losing the last entries in a crash costs only their computation
            self._file = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            try:
                with lock(Path(path).parent):  # of two ranks: SQLite does not wait where the journal changes
                    self._file.execute("PRAGMA journal_mode=WAL")
                self._file.execute("PRAGMA synchronous=NORMAL")
                self._file.execute("CREATE TABLE IF NOT EXISTS features (key TEXT PRIMARY KEY, value BLOB)")
            except sqlite3.OperationalError:  # locked, or no space: nothing is damaged
                raise
            except sqlite3.DatabaseError as error:
                raise ValueError(f"{path} is damaged ({error}); delete it, its features are computed anew") from None

    def __call__(self, images: Sequence[bytes], crowd: Sequence[bool] | None = None) -> list[EncodedImage]:
        """Encodes pictures, each distinct one at most once.

        Args:
            images: Pictures as PNG bytes.
            crowd: For each whether its prompt shows several (matters in few families); ``None`` says none does.

        Returns:
            One entry a picture, in order.
        """
        crowded = [self.vlm.pictures.crowd_matters and many for many in crowd or [False] * len(images)]
        keys = [self._key(image, many) for image, many in zip(images, crowded, strict=True)]
        found: dict[str, EncodedImage] = {}
        missing: dict[bool, dict[str, bytes]] = {False: {}, True: {}}
        for key, image, many in zip(keys, images, crowded, strict=True):
            if key in found or key in missing[many]:
                continue
            entry = self._lookup(key)
            if entry is None:
                missing[many][key] = image
            else:
                found[key] = entry
        for many, waiting in missing.items():
            found |= self._encode(waiting, many)
        return [found[key] for key in keys]

    def inputs(self, shown: Sequence[Sequence[bytes]], encoded: Sequence[EncodedImage]) -> dict[str, Tensor]:
        """What a model is given of a batch's pictures: their features, or pixels where its tower is trained.

        Args:
            shown: Pictures of each prompt as PNG bytes.
            encoded: The same as this cache encoded them, all in reading order.
        """
        if not encoded:
            return {}
        pictures = self.vlm.pictures
        inputs = {name: torch.cat([each.beside[name] for each in encoded]) for name in pictures.beside_pictures}
        known = [each.features for each in encoded if each.features is not None]
        if known:
            return inputs | {"image_features": torch.cat(known)}
        return inputs | pictures.pixels([[opened(image) for image in images] for images in shown if images], encoded)

    def _key(self, image: bytes, crowd: bool) -> str:
        return hashlib.sha256(self._model_key.encode() + (b"crowd" if crowd else b"") + image).hexdigest()

    def _encode(self, waiting: dict[str, bytes], crowd: bool) -> dict[str, EncodedImage]:
        found: dict[str, EncodedImage] = {}
        items = list(waiting.items())
        for start in range(0, len(items), self.batch_size):
            chunk = items[start : start + self.batch_size]
            pictures = [opened(image) for _, image in chunk]
            encoded = self.vlm.image_features(pictures, crowd=crowd)
            self.computed += len(encoded)
            for (key, _), entry in zip(chunk, encoded, strict=True):
                found[key] = entry
                self._remember(key, entry)
            if self._file is not None:
                rows = [(key, _dump(entry)) for (key, _), entry in zip(chunk, encoded, strict=True)]
                self._file.executemany("INSERT OR IGNORE INTO features VALUES (?, ?)", rows)
        return found

    def close(self) -> None:
        """Closes the file; further calls compute what memory does not hold."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _lookup(self, key: str) -> EncodedImage | None:
        entry = self._memory.get(key)
        if entry is not None:
            self._memory.move_to_end(key)
            return entry
        if self._file is None:
            return None
        row = self._file.execute("SELECT value FROM features WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        entry = _load(row[0])
        self._remember(key, entry)
        return entry

    def _remember(self, key: str, entry: EncodedImage) -> None:
        self._memory[key] = entry
        self._held += _bytes(entry)
        while self._held > self._budget and len(self._memory) > 1:
            _, oldest = self._memory.popitem(last=False)
            self._held -= _bytes(oldest)


def opened(image: bytes) -> Image.Image:
    """A picture of PNG bytes, in RGB."""
    return Image.open(io.BytesIO(image)).convert("RGB")


def _bytes(entry: EncodedImage) -> int:
    return sys.getsizeof(entry.ids) + (0 if entry.features is None else entry.features.nbytes)


def _dump(entry: EncodedImage) -> bytes:
    assert entry.features is not None, "a tower that is trained has no file"
    return save({"ids": torch.tensor(entry.ids), "features": entry.features.contiguous(), **entry.beside})


def _load(blob: bytes) -> EncodedImage:
    tensors = load(blob)
    return EncodedImage(tensors.pop("ids").tolist(), tensors.pop("features"), tensors)
