import time
import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from lightning_vlmq.envs.numberline import NumberLine
from lightning_vlmq.envs.text import TextTask


@pytest.mark.parametrize("options", [{}, {"font_sizes": (12, 54), "random_place": True}])
def test_gymnasium_accepts_it(options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Render modes are tried only through gymnasium.make, and these environments are not registered.
        warnings.filterwarnings("ignore", message=".*alternative render modes.*")
        check_env(NumberLine(**options))
    assert isinstance(NumberLine(), TextTask)


def play(env, start, target, actions):
    env.reset(seed=0, options={"start": start, "target": target})
    return [env.step(env.parse(action))[1:4] for action in actions]


def test_rewards():
    assert play(NumberLine(), 1, 3, "++") == [(0.0, False, False), (1.0, True, False)]
    assert play(NumberLine(), 1, 3, "-+") == [(-1.0, False, False), (0.0, False, False)]
    # Against the wall the number stays, and so does the distance.
    assert play(NumberLine(), 0, 1, "-+") == [(-1.0, False, False), (1.0, True, False)]
    assert play(NumberLine(), 5, 3, "+--") == [(-1.0, False, False), (0.0, False, False), (1.0, True, False)]


def test_own_step_limit():
    assert play(NumberLine(max_steps=3), 0, 5, "+++")[-1] == (0.0, False, True)
    assert play(NumberLine(max_steps=3), 0, 3, "+++")[-1] == (1.0, True, False)
    assert play(NumberLine(), 0, 1, "-" * 50)[-1] == (-1.0, False, False)


def test_seed_decides_everything():
    def record(seed):
        env = NumberLine(font_sizes=(12, 54), random_place=True)
        pictures = [env.reset(seed=seed)[0].tobytes()]
        return pictures + [env.reset()[0].tobytes() for _ in range(5)]

    np.random.seed(0)  # noqa: NPY002  the global generator must not matter
    first = record(7)
    np.random.seed(1)  # noqa: NPY002
    assert record(7) == first
    assert record(8) != first


def test_start_pairs_are_those_of_the_original():
    env, pairs = NumberLine(), {}
    for seed in range(3000):
        info = env.reset(seed=seed)[1]
        pair = (info["current"], info["target"])
        pairs[pair] = pairs.get(pair, 0) + 1
    assert len(pairs) == 30
    # A drawn (4, 4) becomes (4, 0), a drawn (5, 5) becomes (5, 1): twice as often as (0, 5), 83 of 3,000.
    assert 50 < pairs[0, 5] < 120
    assert 120 < pairs[4, 0] < 215
    assert 120 < pairs[5, 1] < 215


def test_pictures_tell_all_states_apart_and_stay_on_the_canvas():
    pictures = set()
    for env in (NumberLine(), NumberLine(font_size=54), NumberLine(font_sizes=(10, 54), random_place=True)):
        for start in range(6):
            for target in set(range(6)) - {start}:
                picture, info = env.reset(seed=start, options={"start": start, "target": target})
                assert (info["current"], info["target"]) == (start, target)
                dark = picture[..., 0] < 128
                assert not dark[[0, 1, 2, -1, -2, -3]].any()
                assert not dark[:, [0, 1, 2, -1, -2, -3]].any()
                assert dark.any()
                pictures.add(picture.tobytes())
    assert len(pictures) == 90


def test_sizes_and_places_vary():
    env = NumberLine(font_sizes=(20, 54), random_place=True)
    corners = set()
    for seed in range(40):
        rows, columns = np.nonzero(env.reset(seed=seed)[0][..., 0] < 128)
        corners.add((rows.min(), columns.min(), rows.max() - rows.min()))
    assert len(corners) > 35


def test_words_and_expert():
    env = NumberLine()
    env.reset(seed=0, options={"start": 5, "target": 4})
    assert env.summary() == "Target: 4. Current: 5."
    assert (env.text(), env.expert_action(), env.goal_reached()) == ("", "-", False)
    env.step(0)
    assert (env.summary(), env.expert_action(), env.goal_reached()) == ("Target: 4. Current: 4.", None, True)


def test_mistakes_are_named():
    env = NumberLine()
    with pytest.raises(ValueError, match="call reset"):
        env.step(0)
    with pytest.raises(ValueError, match="two different numbers"):
        env.reset(options={"start": 3, "target": 3})
    with pytest.raises(ValueError, match="give both start and target"):
        env.reset(options={"begin": 3})
    with pytest.raises(ValueError, match="do not fit"):
        NumberLine(font_size=80)
    env.reset()
    with pytest.raises(ValueError, match="action 2"):
        env.step(2)


def test_information_is_no_live_alias():
    env = NumberLine()
    picture, info = env.reset(seed=0, options={"start": 0, "target": 5})
    before = picture.copy()
    env.step(1)
    assert info["current"] == 0
    assert (picture == before).all()


def test_speed():
    env = NumberLine()
    env.reset(seed=0)
    start = time.process_time()
    for index in range(1000):
        if env.step(index % 2)[2]:
            env.reset()
    assert 1000 / (time.process_time() - start) > 1000
