"""Augmentation: the same picture, elsewhere and smaller, and nothing cut off."""

import io

import numpy as np
import pytest
from PIL import Image

from lightning_vlmq import RandomZoomOut
from lightning_vlmq.envs.pictures import encode_png


def pixels(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))


@pytest.fixture
def square() -> bytes:
    """A black square of 40 x 40 in the left upper corner, but for ten pixels, of a blue picture of 120 x 80."""
    picture = np.full((80, 120, 3), (10, 20, 200), np.uint8)
    picture[10:50, 10:50] = 0
    return encode_png(picture)


def test_half_the_size_at_all_places(square: bytes) -> None:
    zoom = RandomZoomOut((0.5, 0.5), variants=200)
    corners = set()
    for number in range(200):
        seen = pixels(zoom.variant(square, number))
        assert seen.shape == (80, 120, 3)
        assert tuple(seen[0, 0]) == tuple(seen[-1, -1]) == (10, 20, 200)
        rows, columns = np.nonzero(seen[..., 2] < 100)
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (20, 20)  # the square is whole, half as large
        assert np.unique(seen.reshape(-1, 3)[:, 2]).max() == 200  # nothing but blue around it
        corners.add((int(rows.min()), int(columns.min())))
    # the picture of 60 x 40 can stand at 0-60, 0-40; its square begins 5 pixels behind its corner
    downs, rights = zip(*corners, strict=True)
    assert (min(downs), min(rights)) >= (5, 5)
    assert max(downs) <= 45
    assert max(rights) <= 65
    assert max(downs) - min(downs) > 30
    assert max(rights) - min(rights) > 45


def test_sizes_fill_the_range(square: bytes) -> None:
    zoom = RandomZoomOut((0.6, 1.0), variants=100)
    sides = [np.ptp(np.nonzero(pixels(zoom.variant(square, n))[..., 2] < 100)[0]) + 1 for n in range(100)]
    assert 24 <= min(sides) <= 26
    assert 38 <= max(sides) <= 40


def test_variants_are_few_and_the_same_each_time(square: bytes) -> None:
    zoom, other = RandomZoomOut(p=0.25, variants=4), RandomZoomOut(p=0.25, variants=4)
    rng = np.random.default_rng(0)
    drawn = [zoom(square, rng) for _ in range(400)]
    assert len(set(drawn)) == 5
    assert 260 < drawn.count(square) < 340  # 300 expected
    assert set(drawn) == {square, *(other.variant(square, number) for number in range(4))}
    rng = np.random.default_rng(0)
    assert drawn == [other(square, rng) for _ in range(400)]


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_never_and_always(square: bytes, p: float) -> None:
    rng = np.random.default_rng(1)
    drawn = [RandomZoomOut(p=p, variants=2)(square, rng) for _ in range(20)]
    assert drawn.count(square) == (0 if p else 20)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"scale": (0.5, 1.2)}, "scale"),
        ({"variants": 0}, "variants"),
        ({"p": 1.5}, "p must be"),
    ],
)
def test_bad_options(options: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        RandomZoomOut(**options)
