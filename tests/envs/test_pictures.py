import io

import numpy as np
from PIL import Image

from lightning_vlmq.envs import pictures
from lightning_vlmq.envs.pictures import encode_png, text_sprite


def test_png_is_lossless_and_made_once():
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    encoded = encode_png(picture)
    assert (np.asarray(Image.open(io.BytesIO(encoded))) == picture).all()
    assert encode_png(picture.copy()) is encoded
    assert encode_png(picture.reshape(30, 20, 3)) != encoded


def test_cache_is_bounded():
    cache = pictures._PngCache(limit=2000)
    for value in range(200):
        cache.encode(np.full((30, 30, 3), value, np.uint8))
    assert cache._size == sum(map(len, cache._encoded.values())) <= 2000


def test_text_is_black_on_white_and_read_only():
    sprite = text_sprite("Target: 5", 40)
    assert sprite.shape[0] == 50
    assert (sprite.min(), sprite.max()) == (0, 255)
    assert not sprite.flags.writeable
