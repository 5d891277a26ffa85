import numpy as np
import pytest

from lightning_vlmq.envs.cards import RANKS, SUITS, draw_back, draw_card


def test_every_card_looks_different():
    faces = {draw_card(rank, suit).tobytes() for rank in RANKS for suit in SUITS}
    assert len(faces | {draw_back().tobytes()}) == 53


@pytest.mark.parametrize("size", [(60, 84), (30, 42), (17, 24)])
def test_size_and_corners(size):
    for card in (draw_card("10", "hearts", *size), draw_back(*size)):
        assert card.size == size
        alpha = np.asarray(card)[..., 3]
        assert alpha[0, 0] < 128
        assert alpha[size[1] // 2, size[0] // 2] == 255


def test_ink_stays_inside_the_card_and_has_the_colour_of_the_suit():
    for rank in RANKS:
        for suit, red in (("clubs", False), ("diamonds", True), ("hearts", True), ("spades", False)):
            face = np.asarray(draw_card(rank, suit)).astype(int)
            dark = (face[..., 1] < 60) & (face[..., 3] > 250)
            rows, columns = np.nonzero(dark)
            assert 3 <= rows.min() < 12
            assert rows.max() <= 80
            assert columns.min() >= 3
            assert columns.max() <= 56
            assert (face[dark][:, 0].mean() > 150) == red


def test_cards_are_drawn_once():
    assert draw_card("A", "spades") is draw_card("A", "spades")


def test_unknown_cards_are_named():
    with pytest.raises(ValueError, match="rank '1' is not"):
        draw_card("1", "spades")
    with pytest.raises(ValueError, match="suit 'cups' is unknown"):
        draw_card("A", "cups")
