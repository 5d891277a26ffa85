"""A Hugging Face vision-language model and its LoRA adapter behind one small interface.

Everything above this file sees a VLM as: prompt -> inputs, image features, hidden states, language head,
generation. Names of layers, families and containers stay in here.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList, SuppressTokensLogitsProcessor

from lightning_vlmq.adapters import add_adapter, export
from lightning_vlmq.adapters import train_language_model as _train
from lightning_vlmq.compiling import compile_layers
from lightning_vlmq.families import FAMILIES, Family
from lightning_vlmq.frozen_layers import drops_out, layers_below_adapter, noted, repeated
from lightning_vlmq.language_head import learn_head_output
from lightning_vlmq.loading import EMBEDDED, fingerprint, load_network, load_processor, locate
from lightning_vlmq.pictures import EncodedImage, Pictures
from lightning_vlmq.sampling import RawLogProbs, Sampled, drawn_with, from_the_model_itself, until_stop
from lightning_vlmq.shapes import without_numbers
from lightning_vlmq.vision import train_vision, vision_fingerprint, vision_parameters
from lightning_vlmq.vocabulary import forbidden_ids, stop_ids, vocabulary_fingerprint

__all__ = ["EMBEDDED", "VLM"]


class VLM(nn.Module):
    """A VLM whose language model is trained, by a LoRA adapter on the frozen base or as a whole; its tower if asked.

    Args:
        name: ``"embedded"``, a local folder, or a name on the Hugging Face hub.
        lora_rank: Rank of the adapter; 0 trains no adapter (the VLM is then frozen).
        lora_alpha: Scale of the adapter (the update is multiplied by alpha / rank).
        lora_dropout: Dropout on the adapter's input.
        lora_targets: Suffixes of module names that get an adapter, e.g. ``["q_proj", "v_proj"]``;
            ``"all-linear"`` takes every linear layer of the language model. Only the language model is
            searched: the same suffixes also occur in vision towers, whose features are cached.
        lora_layers: Only this many layers of the language model, the last ones, get an adapter; ``null`` takes all. An
            update is cheaper, and what the layers below know cannot be lost.
        train_head: Also train the language head itself (the paper freezes it); where it is tied to token embeddings,
            these stay as they are. A small model then puts its last hidden states into words within far fewer updates.
        use_rslora: Scale the adapter by alpha / sqrt(rank) (rsLoRA), for high ranks.
        use_dora: Learn the weights' lengths apart from their directions (DoRA): closer to training all, but slower.
        train_language_model: Train the language model itself, head and token embeddings included, in place of an
            adapter (what is said of LoRA does not count then). Some 16 bytes a weight with AdamW; there is no base left
            for ``VLMQ(critic_states: base)``.
        train_vision_tower: Train all outside of the language model, too: the vision tower and the connector behind it,
            but for parts that no gradient reaches. Features are then kept nowhere: each step encodes its pictures
            anew, forward and backward. Beside an adapter, ``train_language_model``, or alone with ``lora_rank`` 0; no
            base is left here either.
        dtype: Type of the base weights, e.g. ``"bfloat16"``; the adapter stays float32.
        load_in_4bit: Keep the linear layers of the language model in 4 bits (NF4 of bitsandbytes, QLoRA) and compute in
            ``dtype``: less memory for more time. The vision tower stays as it is.
        gradient_checkpointing: Keep less of the forward pass and compute it again in the backward pass: less memory for
            about a third more time.
        compile: Backend of ``torch.compile`` (``"inductor"``) for the layers that are adapted or trained, in training
            and validation; ``null`` compiles nothing. Play is never compiled: its shapes change with each token.

    Attributes:
        trains_base: Names of the options that train weights of the model as it was loaded.
        compiled: Whether layers are compiled.
        options: All arguments above but the name: with both, another process makes the same VLM again.

    Raises:
        ValueError: The model has no image input or takes no encoded pictures, its processor lacks a package, the name
            is neither a folder nor reachable, ``lora_targets`` or ``lora_layers`` match nothing, ``train_head`` stands
            without an adapter, or it, ``train_language_model`` or ``train_vision_tower`` in another type than float32;
            or this tower cannot be trained.
    """

    def __init__(
        self,
        name: str = "embedded",
        *,
        lora_rank: int = 16,
        lora_alpha: float = 32.0,
        lora_dropout: float = 0.0,
        lora_targets: Sequence[str] | str = "all-linear",
        lora_layers: int | None = None,
        train_head: bool = False,
        use_rslora: bool = False,
        use_dora: bool = False,
        train_language_model: bool = False,
        train_vision_tower: bool = False,
        dtype: str = "float32",
        load_in_4bit: bool = False,
        gradient_checkpointing: bool = False,
        compile: str | None = None,
    ) -> None:
        given = dict(locals())
        super().__init__()
        self.options = {key: value for key, value in given.items() if key not in ("self", "name", "__class__")}
        whole = train_language_model
        chosen = {"train_language_model": whole, "train_vision_tower": train_vision_tower}
        self.trains_base = tuple(option for option, is_on in chosen.items() if is_on)
        # in bfloat16 three quarters of a head's steps at 1e-4 are rounded away
        if self.trains_base and (dtype != "float32" or load_in_4bit):
            raise ValueError(
                f"vlm.{self.trains_base[0]} needs dtype float32 and load_in_4bit false; set trainer.precision: "
                f"bf16-mixed to compute in bfloat16"
            )
        if train_head and not whole and (lora_rank <= 0 or dtype != "float32"):
            raise ValueError("vlm.train_head needs lora_rank above 0 and dtype float32; set these or train_head: false")
        self.name = name
        self._dtype, self._four_bit, self._trains_head = dtype, load_in_4bit, train_head and not whole
        source = locate(name)
        network: Any = load_network(source, dtype, four_bit=load_in_4bit)
        family = FAMILIES.get(network.config.model_type, Family())
        self.processor: Any = load_processor(source, family.template)
        self.tokenizer = self.processor.tokenizer
        self.tokenizer.padding_side = "left"
        network.requires_grad_(False)
        if gradient_checkpointing:
            network.gradient_checkpointing_enable({"use_reentrant": False})  # the base's inputs need no gradient
        try:
            self.pictures = Pictures(network, self.processor, family.reply_types)
            self.head_output = learn_head_output(network)
        except ValueError as error:
            raise ValueError(f"vlm.name: {name!r} ({network.config.model_type}): {error}") from None
        self.network: Any = network
        if self.trains_base:
            _ = self.base_fingerprint  # of the weights as they were loaded
        if whole:
            _train(network)
        elif lora_rank > 0:
            self.network = add_adapter(
                network,
                lora_targets,
                lora_layers,
                train_head=train_head,
                r=lora_rank,
                lora_alpha=lora_alpha,
                lora_dropout=lora_dropout,
                use_rslora=use_rslora,
                use_dora=use_dora,
            )
        if train_vision_tower:
            train_vision(self.hf, self.pictures)
        # an estimate of memory asks for no speed
        self.compiled = compile is not None and not without_numbers(self.token_embeddings())
        if compile is not None and self.compiled:
            compile_layers(self.hf.get_decoder(), compile)
        self.eval()

    # -- what is inside -------------------------------------------------------------------------------------

    @property
    def hf(self) -> Any:
        """The Hugging Face model; LoRA layers, if any, are in place."""
        return self.network.base_model.model if isinstance(self.network, PeftModel) else self.network

    @property
    def hidden_size(self) -> int:
        """D, the width of the hidden states that the heads read."""
        return int(self.hf.config.get_text_config().hidden_size)

    @property
    def vocab_size(self) -> int:
        """V, the number of outputs of the language head (padded vocabularies included)."""
        return int(self.token_embeddings().shape[0])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a reply; the first one is appended to replies that come as text."""
        return stop_ids(self.hf, self.processor)

    @cached_property
    def forbidden_ids(self) -> tuple[int, ...]:
        """Ids that a reply must never hold: of pictures, padding, other special tokens, none of the tokenizer's."""
        of_pictures, stops = self.pictures.special_ids, self.stop_ids
        return tuple(forbidden_ids(self.hf, self.processor, of_pictures, stops, self.vocab_size))

    @property
    def image_token_id(self) -> int:
        """Id of the placeholder that image features replace."""
        return self.pictures.token_id

    @property
    def tokenizer_fingerprint(self) -> str:
        """Short hash of the vocabulary; sampled ids of a store are used only where it agrees."""
        return vocabulary_fingerprint(self.tokenizer)

    @property
    def vision_fingerprint(self) -> str:
        """Short hash of what decides image features: weights outside of the language model and the processor."""
        return vision_fingerprint(self.hf, self.processor)

    def vision_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and weights outside of the language model: the tower's and the connector's."""
        return vision_parameters(self.hf)

    @property
    def trains_vision_tower(self) -> bool:
        """Whether the tower and the connector are trained, so that no features of theirs can be kept."""
        return "train_vision_tower" in self.trains_base

    @property
    def has_base(self) -> bool:
        """Whether the model as it was loaded is still there beside what is trained (:meth:`base`)."""
        return not self.trains_base

    @cached_property
    def base_fingerprint(self) -> str:
        """Short hash of the base: of some numbers of each of its weights, adapters left out."""
        own = ("lora_", "modules_to_save")
        return fingerprint(p for name, p in self.hf.named_parameters() if not any(part in name for part in own))

    def token_embeddings(self) -> Tensor:
        """Weights of the language head ``[V, D]`` (of the base, also where an adapter changes it)."""
        head = self.hf.get_output_embeddings()
        return cast(Tensor, getattr(head, "original_module", head).weight)

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """Within this context no part drops anything out; behind it each part trains if it did before."""
        modes = {part: part.training for part in self.modules()}
        self.eval()
        try:
            yield
        finally:
            for part, training in modes.items():
                part.training = training

    @property
    def drops_out(self) -> bool:
        """Whether training drops something out of what is trained or runs with it, so that inference differs."""
        return drops_out(self.hf if self.trains_vision_tower else self.hf.get_decoder())

    # -- what it computes -----------------------------------------------------------------------------------

    def image_features(self, images: Sequence[Any], *, crowd: bool = False) -> list[EncodedImage]:
        """Encodes pictures: for each the ids that stand for it in a prompt, its features, and what goes beside them.

        Args:
            images: RGB pictures (PIL).
            crowd: As for prompts that show several pictures, where the family makes a difference.

        Returns:
            One entry a picture, without features where the tower is trained: the next step would change them.
        """
        with self.inference():  # a tower's dropout would stay in the cache for good
            return self.pictures.encode(images, crowd=crowd, features=not self.trains_vision_tower)

    def hidden(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Hidden states ``[B, S, D]`` that the language head reads.

        Args:
            inputs: ``input_ids`` and ``attention_mask`` ``[B, S]``; ``image_features`` ``[sum N, W]``, those
                of all pictures of the batch in reading order, or where the tower is trained what it takes of them
                (both absent without pictures); what the family takes beside them
                (:class:`~lightning_vlmq.pictures.Pictures`).
        """
        with self.pictures.asked_for():
            output = self.hf.base_model(**self.pictures.arguments(inputs), use_cache=False)
        hidden = cast(Tensor, output.last_hidden_state)
        if self.trains_vision_tower and torch.is_grad_enabled():
            # a batch may show no picture, or none that reaches all of it, and other processes wait for each gradient
            hidden = hidden + 0 * sum(p.sum() for _, p in self.vision_parameters() if p.requires_grad)
        return hidden

    def hidden_and_base(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Hidden states as of :meth:`hidden`, and those without the adapter, of which no gradient flows.

        Layers below the first adapted one run once, as in inference.
        """
        below = layers_below_adapter(self.hf.get_decoder())
        with noted(below) as outputs:
            hidden = self.hidden(inputs)
        with torch.no_grad(), self.inference(), self.base(), repeated(below, outputs):
            return hidden, self.hidden(inputs)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., V]`` of hidden states ``[..., D]``, scaled and soft-capped where the family does it."""
        return self.head_output.logits(self.hf.get_output_embeddings()(hidden))

    @torch.no_grad()
    def generate(
        self,
        inputs: Mapping[str, Tensor],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        generator_seed: int | None = None,
    ) -> list[Sampled]:
        """Samples replies for left-padded prompts.

        Args:
            inputs: As for :meth:`hidden`, padded on the left.
            max_new_tokens: Length at which a reply is cut.
            temperature: 0 takes the likeliest token.
            generator_seed: Seeds the draw; the global generators are left as they were.

        Returns:
            Tokens of each reply, the stop token included where one was sampled.
        """
        noted, masked = RawLogProbs(), SuppressTokensLogitsProcessor(self.forbidden_ids, str(self.device))
        stop_ids, defaults = list(self.stop_ids), self.hf.generation_config
        with self.inference(), drawn_with(generator_seed, self.device), contextlib.ExitStack() as stack:
            stack.enter_context(self.pictures.asked_for())
            if self.compiled:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            # a family's defaults may hold penalties, too: replies must come from pi itself
            stack.callback(setattr, self.hf, "generation_config", defaults)
            self.hf.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
            output = self.hf.generate(
                **self.pictures.arguments(inputs),
                **from_the_model_itself(temperature),
                max_new_tokens=max_new_tokens,
                eos_token_id=stop_ids,
                pad_token_id=self.tokenizer.pad_token_id,
                logits_processor=LogitsProcessorList([noted, masked]),  # what is noted is not masked yet
                use_cache=True,
                synced_gpus=False,  # each rank plays on its own, also on weights that are in shards otherwise
            )
        replies = output[:, inputs["input_ids"].shape[1] :]
        log_probs = noted.until(replies[:, -1]).tolist()
        kept = [until_stop(ids, self.stop_ids) for ids in replies.tolist()]
        return [Sampled(ids, row[: len(ids)]) for ids, row in zip(kept, log_probs, strict=True)]

    # -- the adapter ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def base(self) -> Iterator[None]:
        """Within this context the adapter is off: the VLM is the one that was loaded, if it is there (``has_base``)."""
        if isinstance(self.network, PeftModel):
            with self.network.disable_adapter():
                yield
        else:
            yield

    def trainable_names(self) -> list[str]:
        """Names of the trained parameters: what a checkpoint has to hold."""
        return [name for name, parameter in self.named_parameters() if parameter.requires_grad]

    def export(self, folder: str | Path, *, merged: bool) -> None:
        """Writes the plain peft adapter, or the merged model that ``from_pretrained`` loads without us.

        Args:
            folder: Where to; made if missing.
            merged: True adds the adapter to the weights and writes a whole model.

        Raises:
            ValueError: There is no adapter to export, or it is not all that was trained.
        """
        if self.has_base and not isinstance(self.network, PeftModel):
            raise ValueError("there is no adapter to export: vlm.lora_rank is 0")
        if not self.has_base and not merged:
            raise ValueError(f"an adapter would lack what vlm.{self.trains_base[0]} trains; export it merged")
        load = (lambda: load_network(locate(self.name), self._dtype)) if self._four_bit else None
        export(self.network, folder, merged=merged, untied=self._trains_head, unrounded=load)
        self.processor.save_pretrained(folder)
