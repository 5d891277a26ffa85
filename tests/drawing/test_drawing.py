import io

import numpy as np
from PIL import Image

from lightning_vlmq.drawing import (
    Alternative,
    Cell,
    Frame,
    Reply,
    Strip,
    advantage_colour,
    draw_film,
    draw_plane,
    draw_tokens,
    elide,
)
from lightning_vlmq.drawing.text import GREEN, RED, printable, shorten, thumbnail, width, wrap

FULL_GREEN, FULL_RED = (110, 205, 130), (245, 130, 120)


def _png(colour: str, size: tuple[int, int] = (60, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format="PNG")
    return buffer.getvalue()


def _count(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(picture) == colour).all(-1).sum())


def _margins_are_white(picture: Image.Image) -> bool:
    """Nothing that is drawn reaches the right or lower edge."""
    pixels = np.asarray(picture)
    return bool((pixels[:, -4:] == 255).all() and (pixels[-4:] == 255).all())


def test_colours_by_hand() -> None:
    assert advantage_colour(0.0, 2.0) == (255, 255, 255)
    assert advantage_colour(2.0, 2.0) == advantage_colour(7.0, 2.0) == FULL_GREEN
    assert advantage_colour(-2.0, 2.0) == advantage_colour(-7.0, 2.0) == FULL_RED
    # a quarter of the scale has half of the shade: 255 - .5 (255 - 245), ..., rounded to even
    assert advantage_colour(-0.5, 2.0) == (250, 192, 188)


def test_text_that_the_font_lacks_is_escaped() -> None:
    assert printable("a\n<é>…") == r"a\n<\xe9>…"


def test_wrapped_lines_fit_and_say_what_is_missing() -> None:
    text = "one two three four five sixsevensixsevensixseven eight"
    room = width("three four", 13)
    whole = wrap(text, 13, room, 99)
    assert all(width(line, 13) <= room for line in whole)
    assert "".join(whole).replace(" ", "") == text.replace(" ", "")
    assert whole[:2] == ["one two", "three four"]
    cut = wrap(text, 13, room, 2)
    assert cut[0] == "one two"
    assert cut[1].startswith("three")
    assert cut[1].endswith("…")
    assert all(width(line, 13) <= room for line in cut)


def test_shortened_text_fits() -> None:
    assert shorten("end", 12, 100) == "end"
    short = shorten("<end_of_utterance>", 12, 60)
    assert short.startswith("<end")
    assert short.endswith("…")
    assert width(short, 12) <= 60


def test_the_middle_is_left_out_and_counted() -> None:
    assert elide("abcdef", 3, 3) == ("a", "b", "c", "d", "e", "f")
    assert elide("abcdefg", 2, 3) == ("a", "b", 2, "e", "f", "g")
    assert elide("abc", 1, 0) == ("a", 2)


def test_thumbnails_keep_their_shape_and_share_a_square() -> None:
    one = np.asarray(thumbnail([_png("blue")], 60))
    assert (one == (0, 0, 255)).all(-1).sum() == 60 * 30
    two = np.asarray(thumbnail([_png("blue"), _png("red"), _png("lime")], 60))
    assert [(two == colour).all(-1).sum() for colour in ((0, 0, 255), (255, 0, 0), (0, 255, 0))] == [30 * 15] * 3


def test_frames_are_framed_by_validity_and_nothing_is_cut_off() -> None:
    long = "word " * 60 + "x" * 300
    frames = (
        Frame("turn 0", (_png("blue"),), ("Step 0 of 10.",), "+", True, 1.0, 1.0),
        12,
        Frame(long, (), (long, long), long + "\n", False, -1234567.0, 0.25),
        Frame("the end", (_png("blue"),), outcome=long),
    )
    film = draw_film([Strip("short", frames[:1]), Strip(long, frames)], long)
    assert _margins_are_white(film)
    assert _count(film, GREEN) > 1000  # two frames of two pixels
    assert _count(film, RED) > 1000
    only_valid = draw_film([Strip("short", frames[:1])], "title")
    assert _count(only_valid, RED) == 0
    assert _count(only_valid, (0, 0, 255)) == 168 * 84  # the picture, twice as wide as high


def test_cells_are_coloured_by_advantage_and_nothing_is_cut_off() -> None:
    others = (Alternative("alternative", 0.25, -1234.5), Alternative("b", 0.001, 0.0, counts=False))
    good = Cell("good", 0.5, 1.0, 0.0, 1.0, 1.0, others)
    bad = Cell(" a very long token\n", 0.5, -12345.0, 12345.0, -1.0, 0.0, others)
    even = Cell("even", 1.0, 0.0, 0.0, 0.0, 0.5, others)
    cell_pixels = 5000
    picture = draw_tokens([Reply("e-1", ("turn 0",), (_png("blue"),), (good, 3, even))], "title")
    assert _count(picture, FULL_GREEN) > cell_pixels
    assert _count(picture, FULL_RED) < 100  # in the legend's bar alone
    picture = draw_tokens([Reply("e-1", ("turn 0",), (), (bad, even))], "title")
    assert _count(picture, FULL_RED) > cell_pixels
    assert _count(picture, FULL_GREEN) < 100
    long = "word " * 60
    assert _margins_are_white(draw_tokens([Reply(long, (long, long), (), (bad, good) * 13)], long))


def test_without_a_critic_cells_have_no_colour() -> None:
    picture = draw_tokens([Reply("e-1", (), (), (Cell("a", 0.5, alternatives=(Alternative("b", 0.25),)),))], "title")
    assert _count(picture, FULL_GREEN) == _count(picture, FULL_RED) == 0
    assert _margins_are_white(picture)


def test_the_plane_shows_where_pairs_lie() -> None:
    # axes from 0 to 1.2, 40 bins of .03: three pairs in bin (0, 33), one in (33, 33)
    sheet = draw_plane([0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], ("x", "y"), "title", ["a note"])
    assert _margins_are_white(sheet)
    dark = np.argwhere((np.asarray(sheet) == (20, 60, 140)).all(-1))
    pale = np.argwhere((np.asarray(sheet) == (92, 123, 182)).all(-1))  # 190 - 170 sqrt(1/3), ...
    assert len(dark) > 100  # 12 x 12, less the lines
    assert pale[:, 1].min() - dark[:, 1].min() in (33 * 12, 33 * 12 - 1)  # the axis hides a column of the first
    assert abs(pale[:, 0].mean() - dark[:, 0].mean()) < 1  # of one height
    with_outlier = draw_plane([0.0, -100.0], [1000.0, 3.0], ("x", "y"), "title", ["note " * 60])
    assert _margins_are_white(with_outlier)
    assert draw_plane([2.0], [2.0], ("x", "y"), "title", []).width > 500  # a single place has a range, too
