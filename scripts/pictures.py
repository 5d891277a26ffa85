"""Draws the pictures of the README: what a VLM sees of each environment."""

import io
from pathlib import Path

from PIL import Image

from lightning_vlmq.envs import AgentEnv, Blackjack, NumberLine


def main() -> None:
    """Writes docs/pictures/environments.png."""
    games = [
        (NumberLine(), {"start": 1, "target": 4}),
        (NumberLine(font_sizes=(30, 44), random_place=True), {"start": 5, "target": 2}),
        (Blackjack(), {"player": ["7", "A", "5"], "dealer": "K"}),
        (Blackjack(), {"player": ["Q", "6"], "dealer": "9"}),
    ]
    sheet = Image.new("RGB", (4 * 310 - 10, 300), "lightgrey")
    for number, (game, options) in enumerate(games):
        observation = AgentEnv(game).reset(seed=number, options=options)
        sheet.paste(Image.open(io.BytesIO(observation.images[0])), (number * 310, 0))
    path = Path(__file__).parent.parent / "docs" / "pictures" / "environments.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


if __name__ == "__main__":
    main()
