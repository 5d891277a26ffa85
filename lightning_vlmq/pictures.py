"""How a VLM takes pictures: learned from its own processor and vision tower, so that one path serves all families.

Families differ in the token that shows a picture in a prompt, in what the processor writes in its place, in the
container that the language model expects features in, and in inputs beside the tokens. Nothing of it is written down
here: a blank picture is encoded once and shows it.
"""

import contextlib
import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

__all__ = ["EncodedImage", "Pictures"]

_EVERYWHERE = ("input_ids", "attention_mask", "labels")
_LIVE = "live_"
"""Begins names of inputs that are the tower's: what it takes of pictures to encode them in a forward."""
_BLANK = Image.new("RGB", (64, 64), "white")


class EncodedImage(NamedTuple):
    """What a picture becomes in a prompt.

    Attributes:
        ids: Token ids that stand for the picture, placeholders included.
        features: Image features ``[N, W]``, one row a placeholder; ``W`` is D, or a multiple of it where a family also
            feeds the picture to deeper layers. ``None`` where they are not known beforehand.
        beside: Further inputs by name: values of each of ``ids`` ``[len(ids)]``, or of the picture ``[1, ...]``.
    """

    ids: list[int]
    features: Tensor | None
    beside: dict[str, Tensor]


class Pictures:
    """Pictures in the form that one VLM takes them.

    Args:
        hf: The Hugging Face model, in inference mode.
        processor: Its processor, with a chat template.
        reply_types: Values at reply tokens of inputs that have one a token, where they are not 0 as text's are.

    Attributes:
        placeholder: Token by which the chat template shows a picture.
        token_id: Id of the token that image features replace.
        special_ids: Ids of the tokens that frame and fill a picture.
        beside_tokens: Inputs with a value a token, beside ids and mask: name to the value at reply tokens.
        beside_pictures: Inputs with a row a picture, on which the language model's positions depend.
        crowd_matters: Whether a picture is encoded otherwise in a prompt that shows several.

    Raises:
        ValueError: The chat template shows no picture, or the model takes no encoded ones.
    """

    def __init__(self, hf: Any, processor: Any, reply_types: Mapping[str, int]) -> None:
        self._hf = hf
        self._processor = processor
        self._tokenizer = processor.tokenizer
        taken = inspect.signature(hf.forward).parameters
        self._takes_encoded = "mm_encoder_outputs" in taken
        if not self._takes_encoded and not hasattr(hf.base_model, "get_image_features"):
            raise ValueError(f"{type(hf).__name__} takes no encoded pictures; choose another family (docs/models.md)")
        self._given: Any = None
        self.token_id = int(getattr(hf.config, "image_token_id", None) or hf.config.image_token_index)
        self.placeholder = self._find_placeholder()
        ends = (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id)
        self._added = frozenset(self._tokenizer.added_tokens_decoder).difference(ends) | {self.token_id}

        blank = self._process([[_BLANK]])
        ids = blank["input_ids"][0].tolist()
        start, stop = self._span(ids)
        self.special_ids = frozenset(ids[start:stop]) & self._added
        self._frame = self._around(ids)
        typed = [k for k, v in blank.items() if k in taken and v.shape == blank["input_ids"].shape]
        self.beside_tokens = {k: reply_types.get(k, 0) for k in typed if k not in _EVERYWHERE}
        positions = getattr(hf.base_model, "get_rope_index", None)
        placed = [] if positions is None else inspect.signature(positions).parameters
        self.beside_pictures = [k for k in blank if k in placed and k not in typed]

        in_two = self._process([[_BLANK] * 2])["input_ids"][0].tolist()
        self.crowd_matters = in_two.count(self.token_id) != 2 * ids.count(self.token_id)

        with torch.no_grad():
            output = self._features(blank)
        self._pixels = torch.zeros_like(blank["pixel_values"])
        if not self._takes_encoded:
            self._answer_with_given()
        self._kind: Any = type(output)
        self._shape = output.pooler_output.shape[1:] if isinstance(output.pooler_output, Tensor) else None
        deeper = getattr(output, "deepstack_features", None) or ()
        self._deeper, self._deeper_nested = len(deeper), not all(isinstance(layer, Tensor) for layer in deeper)

    def _find_placeholder(self) -> str:
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ""}]}]
        text = self._processor.apply_chat_template(messages, tokenize=False)
        for name in ("image_token", "boi_token"):
            for owner in (self._processor, self._tokenizer):
                token = getattr(owner, name, None)
                if isinstance(token, str) and token in text:
                    return token
        raise ValueError(f"the chat template shows no picture (it gives {text[:80]!r}); correct its template")

    # -- in a prompt ----------------------------------------------------------------------------------------

    def split(self, prompt: str) -> list[list[int]]:
        """Ids of the text before, between and behind the pictures of a rendered prompt.

        One token stands for each picture while the whole is encoded: what a tokenizer does at the beginning of a text
        or beside a special token it then does as it would around the picture itself.
        """
        before, after = self._frame
        token = self._tokenizer.convert_ids_to_tokens(self.token_id)
        text = prompt.replace(self.placeholder, f"{before}{token}{after}")
        bos = self._tokenizer.bos_token
        # as processors do it: a template that writes the token of the beginning itself gets no second one
        ids = self._tokenizer(text, add_special_tokens=bos is None or not text.startswith(bos))["input_ids"]
        pieces: list[list[int]] = [[]]
        for token in ids:
            if token == self.token_id:
                pieces.append([])
            else:
                pieces[-1].append(token)
        return pieces

    # -- encoded --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, images: Sequence[Any], *, crowd: bool = False, features: bool = True) -> list[EncodedImage]:
        """Encodes RGB pictures (PIL) with the vision tower.

        Args:
            images: The pictures.
            crowd: As for prompts that show several, where that matters.
            features: False leaves them, and the tower, out.

        Raises:
            ValueError: The processor writes other text around some picture than around others.
        """
        copies = 2 if crowd and self.crowd_matters else 1
        inputs = self._process([[image] * copies for image in images])
        kept = inputs["attention_mask"].bool()
        rows = [row[keep].tolist() for row, keep in zip(inputs["input_ids"], kept, strict=True)]
        of_each: Sequence[Tensor | None] = [None] * len(images)
        if features:
            flat = _rows(self._features(inputs))
            counts = [row.count(self.token_id) // copies for row in rows for _ in range(copies)]
            assert sum(counts) == flat.shape[0], f"{sum(counts)} placeholders for {flat.shape[0]} image features"
            of_each = [found.cpu().clone() for found in torch.split(flat, counts)[::copies]]
        encoded = []
        for index, own in enumerate(of_each):
            if (frame := self._around(rows[index])) != self._frame:
                raise ValueError(
                    f"the processor writes {frame} around a picture of {images[index].size} and {self._frame} around a "
                    f"blank one; switch off its cropping (do_pan_and_scan)"
                )
            start, stop = self._span(rows[index])
            span = slice(start, start + (stop - start) // copies)
            beside = {name: inputs[name][index][kept[index]][span].clone() for name in self.beside_tokens}
            row = index * copies
            beside |= {name: inputs[name][row : row + 1].clone() for name in self.beside_pictures}
            encoded.append(EncodedImage(rows[index][span], own, beside))
        return encoded

    def pixels(self, shown: Sequence[Sequence[Any]], encoded: Sequence[EncodedImage]) -> dict[str, Tensor]:
        """Inputs by which :meth:`arguments` encodes pictures with the weights of then, and with a gradient to them.

        Args:
            shown: RGB pictures (PIL) of each prompt that shows some.
            encoded: The same as they are in the prompts' ids, all in reading order.
        """
        inputs = self._process(shown)
        wanted = sum(picture.ids.count(self.token_id) for picture in encoded)
        found = int((inputs["input_ids"] == self.token_id).sum())
        assert found == wanted, f"{wanted} placeholders in prompts, but their pictures make {found}"
        return {_LIVE + name: inputs[name] for name in self._taken_by_tower() if name in inputs}

    def arguments(self, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """What ``forward`` and ``generate`` take for a batch's inputs.

        Args:
            inputs: Of the tokens; for pictures either ``image_features`` ``[sum N, W]``, those of all pictures of the
                batch in reading order, or what :meth:`pixels` gives.
        """
        arguments: dict[str, Any] = {k: v for k, v in inputs.items() if not k.startswith(_LIVE)}
        features = arguments.pop("image_features", None)
        if live := {k.removeprefix(_LIVE): v for k, v in inputs.items() if k.startswith(_LIVE)}:
            features = _rows(self._features(live)).to(self._hf.dtype)  # autocast leaves it in its own
        if features is None:
            return arguments
        if self._takes_encoded:
            return arguments | {"mm_encoder_outputs": {"image": self._container(features)}}
        self._given = self._container(features)
        return arguments | {"pixel_values": self._pixels.to(features)}

    def of_blank(self) -> list[Tensor]:
        """Features of a blank picture alone and, where that matters, of two in a prompt, with their graph."""
        return [_rows(self._features(self._process([[_BLANK] * n]))) for n in (1, 2)[: 1 + self.crowd_matters]]

    @contextlib.contextmanager
    def asked_for(self) -> Iterator[None]:
        """Around a forward: refuses a model that did not ask for its pictures, and so saw others.

        Raises:
            ValueError: It did not.
        """
        try:
            yield
            if self._given is not None:
                raise ValueError(
                    f"{type(self._hf).__name__} takes no encoded pictures: it never asked its tower; choose another "
                    f"family (docs/models.md)"
                )
        finally:
            self._given = None

    def _answer_with_given(self) -> None:
        """Before transformers 5.18, and in a few families: the model asks its tower, which has the answer already."""
        encode = self._hf.base_model.get_image_features

        @functools.wraps(encode)  # models look at its signature
        def answer(*args: Any, **options: Any) -> Any:
            given, self._given = self._given, None
            return encode(*args, **options) if given is None else given

        self._hf.base_model.get_image_features = answer

    def _container(self, features: Tensor) -> Any:
        """Features as the family's own output of its vision tower."""
        first, *others = features.chunk(1 + self._deeper, dim=-1)
        output = self._kind()
        # set behind its making: of some kinds it is no field
        output.pooler_output = (first,) if self._shape is None else first.reshape(-1, *self._shape)
        if others:
            output.deepstack_features = [[layer] if self._deeper_nested else layer for layer in others]
        return output

    # -- what the processor and the tower give --------------------------------------------------------------

    def _around(self, ids: list[int]) -> tuple[str, str]:
        """Ordinary text around a picture, which melts into the prompt's: it must be encoded with it."""
        start, stop = self._span(ids)
        before, after = ids[:start], ids[stop:]
        if self._tokenizer.bos_token_id in (*before, *after):  # the frame of a whole prompt, which is the template's
            return "", ""
        return self._tokenizer.decode(before), self._tokenizer.decode(after)

    def _span(self, ids: list[int]) -> tuple[int, int]:
        special = [place for place, token in enumerate(ids) if token in self._added]
        return special[0], special[-1] + 1

    def _process(self, shown: Sequence[Sequence[Any]]) -> Any:
        """What the processor makes of prompts that show these pictures and nothing else."""
        return self._processor(
            text=[self.placeholder * len(images) for images in shown],
            images=[list(images) for images in shown],
            add_special_tokens=False,
            return_tensors="pt",
            padding=True,
        )

    def _taken_by_tower(self) -> list[str]:
        return list(inspect.signature(self._hf.base_model.get_image_features).parameters)

    def _features(self, inputs: Any) -> Any:
        self._given = None  # of a forward that never came to it
        arguments = {name: inputs[name].to(self._hf.device) for name in self._taken_by_tower() if name in inputs}
        arguments["pixel_values"] = arguments["pixel_values"].to(self._hf.dtype)
        return self._hf.base_model.get_image_features(**arguments, return_dict=True)


def _rows(output: Any) -> Tensor:
    """Features of all pictures, one row a placeholder, those for deeper layers beside them ``[sum N, W]``."""
    layers = [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]
    return torch.cat([torch.cat([f.reshape(-1, f.shape[-1]) for f in layer]) for layer in layers], dim=-1)
