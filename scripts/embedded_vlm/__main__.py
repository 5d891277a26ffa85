"""Command line: ``python -m scripts.embedded_vlm build`` makes the embedded model, ``evaluate`` measures it.

``extend --begin 40250 --source OLD --output NEW --work data/extension`` practises only the lessons behind a step, on
weights that have reached it. ``games`` measures how the model reads the pictures of the games, ``tower`` the vision
tower's classification heads, from the working folder.
"""

import argparse
from pathlib import Path

from scripts.embedded_vlm.build import build, extend
from scripts.embedded_vlm.evaluate import evaluate
from scripts.embedded_vlm.games import read_games
from scripts.embedded_vlm.tower import evaluate_tower


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.embedded_vlm", description=__doc__)
    parser.add_argument("command", choices=["build", "extend", "evaluate", "tower", "games"])
    parser.add_argument(
        "--work", type=Path, default=Path("data/embedded"), help="checkpoints and features (git-ignored)"
    )
    parser.add_argument("--output", type=Path, default=Path("lightning_vlmq/embedded"), help="model folder")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", default="cpu", help="device to train on (build)")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw and ask (build)")
    parser.add_argument("--count", type=int, default=300, help="held-out pictures a row of the table (evaluate)")
    parser.add_argument("--source", type=Path, default=Path("lightning_vlmq/embedded"), help="weights to extend")
    parser.add_argument("--begin", type=int, help="step that they have reached (extend)")
    arguments = parser.parse_args()
    if arguments.command == "extend" and arguments.begin is None:
        parser.error("extend needs --begin, the step that the weights of --source have reached")
    if arguments.command == "build":
        build(arguments.work, arguments.output, arguments.threads, arguments.device, arguments.workers)
    elif arguments.command == "extend":
        extend(
            arguments.work,
            arguments.source,
            arguments.output,
            arguments.begin,
            arguments.threads,
            arguments.device,
            arguments.workers,
        )
    elif arguments.command == "games":
        read_games(arguments.output)
    elif arguments.command == "tower":
        evaluate_tower(arguments.work, arguments.count, arguments.threads)
    else:
        evaluate(arguments.output, arguments.count, arguments.threads)


if __name__ == "__main__":
    main()
