"""What a user of the command reads of an error: one line with its place, or the way to an environment's own code."""

import itertools
import re
import traceback
from pathlib import Path

import gymnasium as gym

__all__ = ["located", "of_an_environment", "one_line"]


def of_an_environment(error: BaseException) -> bool:
    """Whether an environment raised it while it was played: its author needs the way there.

    What its constructor refuses is a matter of the configuration.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if isinstance(frame.f_locals.get("self"), gym.Env):
            return frame.f_code.co_name != "__init__"
    return False


def one_line(message: str) -> str:
    """What went wrong, without what the parser says around it: the types it tried and the values it was given."""
    noise = (
        r"Does not validate against|Subtypes:|Errors:|Given value|Expected a <class 'NoneType'>|"
        r"Not a valid subclass of|Subclass types expect|a class path \(str\)|a dict "
    )
    lines = dict.fromkeys(line.strip().removeprefix("- ") for line in message.splitlines())  # each reason once
    kept = [line for line in lines if line and not re.match(noise, line)]
    # a place whose reason was one of those before is left without one
    text = re.sub(r"Problem with given class_path \S+:(?= Problem| *$)", "", " ".join(kept)).strip()
    if any(said in text for said in ("is not accepted", "does not accept option", "unrecognized arguments")):
        text += "; see `vlmq fit --help`, and --model.help or --data.help with a class_path"
    return text


def located(message: str, args: list[str]) -> str:
    """A message with its place: ``FILE, line N: `` of the innermost key it names, if one line of the files has it."""
    files = [arg.removeprefix("--config=") for arg in args if arg.startswith("--config=")]
    files += [value for name, value in itertools.pairwise(args) if name in ("--config", "-c")]
    message = message.replace('"<unicode string>"', " or ".join(files))  # what YAML's parser calls its text
    names = re.findall(r"(?:[Oo]ption|[Kk]ey) ['\"]([\w.]+)['\"]", message) or re.findall(r"^([\w.]+): ", message)
    key = names[-1].rsplit(".", 1)[-1] if names else None
    if key is None or any(re.match(rf"--(?:.*\.)?{key}(?:[=.]|$)", arg) for arg in args):
        return message
    found = [
        f"{file}, line {number}: "
        for file in files
        for number, line in enumerate(_lines(file), 1)
        if re.search(rf"(?<![\w.]){key}\s*:", re.split(r"(?:^|\s)#", line)[0])
    ]
    return (found[0] if len(found) == 1 else "") + message


def _lines(file: str) -> list[str]:
    try:
        return Path(file).read_text().splitlines()
    except OSError:  # a configuration given in place of a file's name
        return []
