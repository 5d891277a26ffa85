"""How well the model reads the pictures of the games that agents learn with; it is never trained on them."""

import io
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from lightning_vlmq.envs import AgentEnv, BabyAI, Blackjack, NumberLine
from lightning_vlmq.envs.exact_numberline import numberline_pairs
from lightning_vlmq.turns import Observation
from scripts.embedded_vlm.tables import card_value
from scripts.embedded_vlm.world_questions import way
from scripts.embedded_vlm.worlds import Cell, from_agent, sides

__all__ = ["ahead_of", "read_games", "told"]

_COMPARE = "+ if current is below target, - if above, else =."
_THING = re.compile(r"A (\w+ \w+) is at (\d), (\d)")
_RANKS = ("A", "2", "3", "4", "5", "6", "7", "8", "9", "J", "Q", "K")


def read_games(folder: Path, count: int = 60, seed: int = 0) -> dict[str, float]:
    """Ask about NumberLine's 30 start pairs, dealt Blackjack hands and BabyAI's worlds.

    Args:
        folder: Model folder.
        count: Blackjack hands of two cards; worlds.
        seed: Of the hands.

    Returns:
        Share of exact answers by question.
    """
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    line, pairs = AgentEnv(NumberLine()), list(numberline_pairs())
    unseen = AgentEnv(NumberLine(font_sizes=(30, 44), random_place=True))
    boards = {
        name: [_picture(env, seed, {"start": start, "target": target}) for seed, (start, target) in enumerate(pairs)]
        for name, env in (("NumberLine", line), ("NumberLine, unseen sizes and places", unseen))
    }
    rng = np.random.default_rng(seed)
    deals = [[_RANKS[i] for i in rng.integers(len(_RANKS), size=3)] for _ in range(count)]
    table = AgentEnv(Blackjack())
    tables = [_picture(table, i, {"player": deal[:2], "dealer": deal[2]}) for i, deal in enumerate(deals)]
    questions = {}
    for name, shown in boards.items():
        signs = ["+" if start < target else "-" for start, target in pairs]
        order = [">" if start < target else "<" for start, target in pairs]  # the target stands above
        questions |= {
            f"{name}, Target?": (shown, "Target?", [str(target) for _, target in pairs]),
            f"{name}, Current?": (shown, "Current?", [str(start) for start, _ in pairs]),
            f"{name}, upper number?": (shown, "Upper?", [str(target) for _, target in pairs]),
            f"{name}, sign between?": (shown, "Sign between upper and lower?", order),
            f"{name}, which is more?": (shown, _COMPARE, signs),
        }
    questions |= {
        "Blackjack, Lower row?": (tables, "Lower row?", [" ".join(deal[:2]) for deal in deals]),
        "Blackjack, Lower total?": (tables, "Lower total?", [str(sum(map(card_value, deal[:2]))) for deal in deals]),
        "Blackjack, Upper row?": (tables, "Upper row?", [f"{deal[2]} back" for deal in deals]),
    }
    questions |= _babyai(count)
    shares = {}
    for name, (asked, question, wanted) in questions.items():
        answers = _ask(model, processor, asked, question)
        shares[name] = sum(a == b for a, b in zip(answers, wanted, strict=True)) / len(wanted)
        print(f"{name:52s} {shares[name]:.0%} of {len(wanted)}", flush=True)
    return shares


def _babyai(count: int) -> dict[str, tuple[list[Image.Image], str, list[str]]]:
    """Questions about worlds of ``GoToRedBallGrey``, seen from above and by the agent."""
    env, own = AgentEnv(BabyAI()), AgentEnv(BabyAI(view="agent", pad_to=8))
    worlds: list[Image.Image] = []
    views: list[Image.Image] = []
    facing, agent, ball, above, seen, before = [], [], [], [], [], []
    for seed in range(count):
        observation = env.reset(seed=seed)
        worlds.append(_shown(observation))
        views.append(_shown(own.reset(seed=seed)))
        (column, row), (x, y), direction = told(observation)
        facing.append(direction)
        agent.append(f"{x} {y}")
        ball.append(f"{column} {row}")
        ahead, right = from_agent((column, row), (x, y), direction)
        above.append(way((ahead, right)))
        seen.append(way((ahead, right) if ahead >= 0 and abs(right) <= 3 else None))
        before.append(ahead_of(observation))
    return {
        "BabyAI, facing?": (worlds, "Which way is the agent facing?", facing),
        "BabyAI, agent's cell?": (worlds, "Where is the agent?", agent),
        "BabyAI, red ball's cell?": (worlds, "Where is the red ball?", ball),
        "BabyAI, way to the red ball?": (worlds, "Way to the red ball?", above),
        "BabyAI, agent's view, way to the red ball?": (views, "Way to the red ball?", seen),
        "BabyAI, agent's view, what is ahead?": (views, "What is ahead?", before),
    }


def told(observation: Observation) -> tuple[Cell, Cell, str]:
    """Where the red ball is, where the agent, and which way it faces, by the world in words."""
    x, y, facing = re.findall(r"You are at (\d), (\d) facing (\w+)", observation.summary)[0]
    column, row = re.findall(r"A red ball is at (\d), (\d)", observation.summary)[0]
    return (int(column), int(row)), (int(x), int(y)), facing


def ahead_of(observation: Observation) -> str:
    """What stands right ahead of the agent in a level of one room: a thing, ``wall`` or ``nothing``."""
    _, agent, facing = told(observation)
    ahead, _, _ = sides(agent, facing)
    things = {(int(a), int(b)): name for name, a, b in _THING.findall(observation.summary)}
    inside = all(1 <= place <= 6 for place in ahead)
    return things.get(ahead, "nothing" if inside else "wall")


def _picture(env: AgentEnv, seed: int, options: dict[str, object]) -> Image.Image:
    return _shown(env.reset(seed=seed, options=options))


def _shown(observation: Observation) -> Image.Image:
    return Image.open(io.BytesIO(observation.images[0])).convert("RGB")


@torch.no_grad()
def _ask(model: object, processor: object, pictures: list[Image.Image], question: str) -> list[str]:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template(  # type: ignore[attr-defined]
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    images = [[picture] for picture in pictures]
    inputs = processor(text=[text] * len(images), images=images, return_tensors="pt", padding=True)  # type: ignore[operator]
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False)  # type: ignore[attr-defined]
    replies = output[:, inputs["input_ids"].shape[1] :]
    return [processor.tokenizer.decode(row, skip_special_tokens=True).strip() for row in replies]  # type: ignore[attr-defined]
