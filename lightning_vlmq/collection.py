"""Makes a demonstration set: plays an environment with a mixture of policies and stores the turns."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lightning_vlmq.batches import TurnEncoder
from lightning_vlmq.collectors import Collector, CollectorPolicy
from lightning_vlmq.envs.agent import AgentEnv, plain_settings
from lightning_vlmq.files import lock, write_atomic
from lightning_vlmq.policy import ExpertPolicy, Policy, RandomPolicy, VLMPolicy
from lightning_vlmq.rollout import play
from lightning_vlmq.store import TurnStore

__all__ = ["POLICIES", "collect", "online_seed"]

POLICIES = ("random", "base", "base_minimum", "expert", "misled")
"""What a mixture may name: random valid actions, the VLM without adapter answering freely or after a reply begun
with the tag, the environment's scripted expert, and one that wants something else."""

_SETTINGS = "collection.json"
_ENDED = "episodes_of_ended_rounds"
"""Among the settings: those of them that are missing are not played again, unless turns are missing, too."""


def collect(
    env: AgentEnv,
    encoder: TurnEncoder,
    folder: str | Path,
    *,
    turns: int,
    mixture: Mapping[str, float],
    temperature: float = 1.0,
    seed: int = 0,
    parallel: int = 256,
    skip_damaged: bool = False,
    collectors: Mapping[str, Collector] | None = None,
) -> TurnStore:
    """Fills a folder with turns, or goes on where an interrupted call stopped; a full folder is left alone.

    Each turn draws its policy from the mixture. Episodes are complete, and so are rounds of ``4 * parallel`` of them
    (else short episodes would be more frequent), so some more turns are stored.

    Args:
        env: The environment; copies of it play.
        encoder: Renders prompts for the VLM's replies.
        folder: Of the store.
        turns: Replies to store at least.
        mixture: Share of each policy of :data:`POLICIES` and of each collector.
        temperature: Of the VLM's replies.
        seed: Of episodes, policies and replies.
        parallel: Episodes played at once.
        skip_damaged: True reads on past damaged shards; their episodes are played anew if turns are missing.
        collectors: Other models that may be named in the mixture.

    Raises:
        ValueError: An unknown policy, shares that do not sum to 1, a damaged shard, or the folder was filled with other
            settings.
    """
    others = dict(collectors or {})
    if taken := set(others).intersection(POLICIES):
        raise ValueError(f"collectors: {min(taken)!r} is a policy of its own; take another name")
    _check_mixture(mixture, [*POLICIES, *others])
    settings: dict[str, Any] = {
        "env": env.name,
        "turns": turns,
        "mixture": dict(mixture),
        "temperature": temperature,
        "seed": seed,
        "vlm": encoder.vlm.name,
        "max_reply_tokens": encoder.max_reply_tokens,
        "parallel": parallel,
        **plain_settings(encoder.prompt, "prompt."),
        **env.settings,
    }
    for name in sorted(set(others).intersection(mixture)):
        settings |= plain_settings(others[name], f"collectors.{name}.")
    settings = json.loads(json.dumps(settings))  # tuples as they will be read back
    path = Path(folder) / _SETTINGS
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock(path.parent, ".collection.lock"):  # of several that begin at once the first one plays
        try:
            return _fill(env, encoder, path, settings, skip_damaged, others)
        finally:
            for other in others.values():
                other.unload()


def _fill(
    env: AgentEnv,
    encoder: TurnEncoder,
    path: Path,
    settings: dict[str, Any],
    skip_damaged: bool,
    others: Mapping[str, Collector],
) -> TurnStore:
    """Plays what is missing in a folder that nobody else fills."""
    found: dict[str, Any] = {}
    if path.exists():
        try:
            found = json.loads(path.read_text())
        except ValueError:
            raise ValueError(
                f"{path} is damaged; delete it and the same command goes on with the turns there"
            ) from None
        for key, value in settings.items():
            if found.get(key, value) != value:
                raise ValueError(
                    f"{path}: these turns were collected with {key} = {found.get(key)!r}, not {value!r}; "
                    f"choose another folder, set data.turns: 0 to train on them as they are, or delete this one"
                )
    store = TurnStore(path.parent, skip_damaged=skip_damaged)
    if not found:
        write_atomic(path, json.dumps(settings, indent=1).encode())
    turns, seed, parallel = settings["turns"], settings["seed"], settings["parallel"]
    mixture: dict[str, float] = settings["mixture"]
    ended = found.get(_ENDED, 0)
    stored = set(store.columns(["seed"])["seed"].tolist())  # read without decoding a picture
    done = len(store.samples)
    columns = (TextColumn("collecting turns"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with store, Progress(*columns, TimeRemainingColumn(), disable=done >= turns) as progress:
        bar = progress.add_task("", total=turns, completed=done)
        # Rounds of a fixed number of episodes, so that the same seeds are played whatever the speed; of a round that
        # was interrupted, those that are missing. What is played is kept, whatever interrupts.
        for first in itertools.count(0, 4 * parallel):
            seeds = [_episode_seed(seed, number) for number in range(first, first + 4 * parallel)]
            missing = [each for each in seeds if each not in stored]
            if done >= turns and len(missing) == len(seeds):
                break
            if done >= turns and first < ended:
                continue  # what is missing of it was lost by its environment
            policies = [_policy(name, encoder, settings["temperature"], seed + first, others) for name in mixture]
            shares, before = list(mixture.values()), done
            played = play(env, policies, missing, shares=shares, parallel=parallel, seed=seed + first)
            for number, episode in enumerate(played, 1):
                store.append(episode)
                done += len(episode)
                expected = before + (done - before) * len(missing) / number  # at the round's end
                progress.update(bar, completed=done, total=max(turns, round(expected)))
            store.flush()
            ended = max(ended, first + len(seeds))
            write_atomic(path, json.dumps(settings | {_ENDED: ended}, indent=1).encode())
    return store


def _episode_seed(seed: int, number: int) -> int:
    """Seeds of demonstrations lie apart from those of evaluation (which are below one million)."""
    return 1_000_000 + seed * 10_000_000 + number


def online_seed(seed: int, number: int) -> int:
    """Seeds of episodes that are played while training, apart from both."""
    return _episode_seed(seed, 5_000_000 + number)


def _check_mixture(mixture: Mapping[str, float], known: Sequence[str]) -> None:
    for name in mixture:
        if name not in known:
            raise ValueError(f"mixture: unknown policy {name!r}; choose from {', '.join(known)}")
    if min(mixture.values(), default=-1) < 0 or abs(sum(mixture.values()) - 1) > 1e-6:
        raise ValueError(f"mixture: shares of policies must be at least 0 and sum to 1, not {dict(mixture)}")


def _policy(name: str, encoder: TurnEncoder, temperature: float, seed: int, others: Mapping[str, Collector]) -> Policy:
    if name in others:
        return CollectorPolicy(name, others[name], encoder, temperature=temperature, seed=seed)
    if name == "random":
        return RandomPolicy()
    if name in ("expert", "misled"):
        return ExpertPolicy(misled=name == "misled")
    if name == "base":
        return VLMPolicy(encoder, temperature=temperature, base=True, seed=seed)
    assert name == "base_minimum"
    return VLMPolicy(encoder, temperature=temperature, base=True, seed=seed, action_prompt="minimum", name=name)
