"""Play that overlaps training: a process with a VLM and environments of its own plays ahead while the trainer trains.

A thread would share Python's lock, torch's generators and the module's modes with the trainer.
"""

import contextlib
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn

import torch
from safetensors.torch import load, save

from lightning_vlmq.batches import TurnEncoder
from lightning_vlmq.callbacks.player import Order, Played, Player
from lightning_vlmq.envs.agent import AgentEnv
from lightning_vlmq.processes import CLOSE_SECONDS, failure, kill, spawn
from lightning_vlmq.turns import Episode
from lightning_vlmq.vlm import VLM

__all__ = ["BackgroundPlayer"]

_LOOK_SECONDS = 0.2
"""Between two looks whether the trainer is to end, while it waits for a play."""


class BackgroundPlayer:
    """A :class:`~lightning_vlmq.callbacks.player.Player` in a process of its own, which :meth:`begin` has play ahead.

    The process makes the VLM anew (its class, name and options) and has the trained weights sent for each play. It
    starts with the first one. What is open, and the next seed, are those behind the last play that was handed over.

    Args:
        environment: What to play.
        vlm: The trained VLM.
        make_encoder: Makes the encoder of a VLM, also there.
        precision: The trainer's precision plugin, for the same computation there.
        device: Where to compute.
        **options: As of a ``Player``.

    Attributes:
        next_seed: Number of the next episode.

    Raises:
        ValueError: Something cannot be sent to a process.
    """

    def __init__(
        self,
        environment: AgentEnv,
        vlm: VLM,
        make_encoder: Callable[[VLM], TurnEncoder],
        *,
        precision: Any,
        device: torch.device,
        **options: Any,
    ) -> None:
        self.next_seed: int = options["next_seed"]
        self._vlm = vlm
        vlm_recipe = type(vlm), vlm.name, vlm.options, vlm.base_fingerprint
        computing = precision, str(device), torch.get_num_threads()
        try:
            self._recipe = pickle.dumps((vlm_recipe, make_encoder, environment, options, computing))
        except Exception as error:  # of many kinds
            raise ValueError(
                f"OnlineCollector.asynchronous: environment, prompt and vlm go to a process, and one of them cannot "
                f"({error}): make that in the environment's reset(), or set asynchronous: false"
            ) from None
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None
        self._open: list[Episode] = []
        self._playing = self._played = b""  # weights of the play under way, and of the last one handed over

    def begin(self, order: Order) -> None:
        """Begins a play with the present weights, which goes on until :meth:`play` takes it."""
        assert not self._playing
        if self._connection is None:
            self._process, self._connection = spawn(_serve, self._recipe, name="player", daemon=False)
        self._playing = _trained_weights(self._vlm)
        try:
            self._connection.send((self._playing, order))
        except OSError:
            self._raise_dead()

    def play(self, order: Order, keep: Callable[[Episode], None], stop: Callable[[], bool]) -> Played:
        """Hands over the play that was begun, or begins one; waits for its end.

        Args:
            order: What to begin.
            keep: Takes each episode that ended.
            stop: Asked while it waits, whether to come back with nothing.

        Raises:
            RuntimeError: The play failed; the message holds the process's own traceback.
            ValueError: The process was killed.
        """
        if not self._playing:
            self.begin(order)
        assert self._connection is not None
        try:
            while not self._connection.poll(_LOOK_SECONDS):
                if stop():
                    return Played(order)
            worked, answer = self._connection.recv()
        except (EOFError, OSError):
            self._raise_dead()
        if not worked:
            raise RuntimeError(f"OnlineCollector: the process that plays failed:\n{answer[1]}")
        self._playing, self._played = b"", self._playing
        played: Played
        played, self._open, self.next_seed = answer
        for episode in played.ended:
            keep(episode)
        return played

    @contextlib.contextmanager
    def weights_of_play(self) -> Iterator[None]:
        """Within this context the trained VLM has the weights that the last play handed over was played with."""
        if not self._played:
            yield
            return
        own = _trained_weights(self._vlm)
        _put(self._vlm, self._played)
        try:
            yield
        finally:
            _put(self._vlm, own)

    def open_episodes(self) -> list[Episode]:
        """Episodes that were open behind the last play that was handed over, marked as truncated."""
        return self._open

    def close(self) -> None:
        """Ends the process, and with it what is being played."""
        if self._process is None or self._connection is None:
            return
        self._connection.close()  # it then closes its environments behind the present turn, and ends
        self._process.join(CLOSE_SECONDS)
        kill(self._process)

    def _raise_dead(self) -> NoReturn:
        assert self._process is not None
        self._process.join(1.0)  # for its exit code
        raise ValueError(
            f"OnlineCollector: the process that plays has ended (exit code {self._process.exitcode}; -9: it was "
            f"killed, perhaps for want of memory): go on with --ckpt_path last, with fewer environments or with "
            f"asynchronous: false, which needs no second VLM"
        ) from None


def _trained_weights(vlm: VLM) -> bytes:
    """The trained weights as they are now."""
    parameters = dict(vlm.named_parameters())
    return save({name: parameters[name].detach().cpu().contiguous() for name in vlm.trainable_names()})


@torch.no_grad()
def _put(vlm: VLM, weights: bytes) -> None:
    parameters = dict(vlm.named_parameters())
    for name, value in load(weights).items():
        parameters[name].copy_(value)


# -- within the process -------------------------------------------------------------------------------------


def _serve(connection: Connection, recipe: bytes) -> None:
    """Plays what is ordered until nobody orders any more."""
    player: Player | None = None
    try:
        vlm, player, context = _made(recipe)
        while order := _received(connection):
            _put(vlm, order[0])
            with context():
                played = player.play(order[1], keep=lambda episode: None, stop=connection.poll)
            _answer(connection, (True, (played, player.open_episodes(), player.next_seed)))
    except Exception as error:
        _answer(connection, failure(error))
    if player is not None:
        with contextlib.suppress(Exception):
            player.close()


def _made(recipe: bytes) -> tuple[VLM, Player, Callable[[], AbstractContextManager[Any]]]:
    """VLM and player as in the trainer, without what was said there when these were made."""
    from transformers.utils import logging as of_transformers

    of_transformers.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_flush_denormal(True)  # they slow a CPU down manyfold
    with warnings.catch_warnings(action="ignore"):
        (kind, name, given, fingerprint), make_encoder, environment, options, computing = pickle.loads(recipe)
        precision, device, threads = computing
        torch.set_num_threads(threads)
        vlm: VLM = kind(name, **given)
    if vlm.base_fingerprint != fingerprint:
        raise ValueError(
            f"{kind.__name__}({name!r}, **vlm.options) made another base in the process that plays: its class or its "
            f"folder has changed, or it was changed behind its making; set asynchronous: false"
        )
    encoder = make_encoder(vlm)  # in front of the conversion, as in the trainer: its features have the same keys
    precision.convert_module(vlm).to(device)
    return vlm, Player(environment, encoder, **options), precision.forward_context


def _received(connection: Connection) -> tuple[bytes, Order] | None:
    with contextlib.suppress(EOFError, OSError):
        order: tuple[bytes, Order] = connection.recv()
        return order
    return None


def _answer(connection: Connection, answer: tuple[bool, Any]) -> None:
    with contextlib.suppress(OSError):  # nobody is there any more
        connection.send(answer)
