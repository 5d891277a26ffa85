"""What the models here share: pictures in the place of their tokens, a language model of transformers, a head."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast

__all__ = ["SIGLIP", "ForeignConfig", "ForeignForConditionalGeneration", "ForeignModel", "published"]

SIGLIP = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
}
"""Shape of the vision tower of all models here (so400m), but for the side of its pictures."""


def published(folder: Path) -> dict[str, Tensor]:
    """Weights of all safetensors of a folder, by their names."""
    weights: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(file)
    return weights


class ForeignConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Configurations of the language model and the vision tower, and the token that shows a picture.

    Args:
        text_config: Of the language model, or its values.
        vision_config: Of the vision tower, or its values.
        image_token_id: Token that image features replace.
        others: Of any model of transformers.
    """

    def __init__(self, text_config: Any = None, vision_config: Any = None, image_token_id: int = 0, **others: Any):
        self.text_config = self._part("text_config", text_config)
        self.vision_config = self._part("vision_config", vision_config)
        self.image_token_id = image_token_id
        super().__init__(**{"tie_word_embeddings": False, **others})

    def _part(self, name: str, given: Any) -> Any:
        kind: Callable[..., Any] = self.sub_configs[name]
        return given if isinstance(given, PreTrainedConfig) else kind(**(given or {}))


class ForeignModel(PreTrainedModel):
    """Tokens and pictures to last hidden states; a subclass says how its tower sees."""

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    config: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.tower: Any = AutoModel.from_config(config.vision_config)  # type: ignore[no-untyped-call]
        self.language_model: Any = AutoModel.from_config(config.text_config)  # type: ignore[no-untyped-call]

    def get_image_features(self, pixel_values: Tensor, image_sizes: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Features of pictures, in ``pooler_output`` one entry ``[N, D]`` a picture.

        Args:
            pixel_values: The picture as a whole and its tiles, padded with empty ones ``[P, tiles, 3, S, S]``.
            image_sizes: Height and width of each picture in pixels ``[P, 2]``.
        """
        features = [self.see(tiles, size.tolist()) for tiles, size in zip(pixel_values, image_sizes, strict=True)]
        # a tuple, as pictures may have different numbers of them
        return BaseModelOutputWithPooling(pooler_output=tuple(features))  # type: ignore[arg-type]

    def see(self, tiles: Tensor, size: list[int]) -> Tensor:
        """Features ``[N, D]`` of one picture."""
        raise NotImplementedError

    def mask(self, input_ids: Tensor, states: Tensor, attention_mask: Any, past_key_values: Any) -> Any:
        """What the language model takes as its mask: padding, if it is causal throughout."""
        return attention_mask

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Any = None,
        pixel_values: Tensor | None = None,
        image_sizes: Any = None,
        past_key_values: Any = None,
        **options: Any,
    ) -> Any:
        """As of any model of transformers; pictures are those of the whole batch in reading order."""
        states = self.language_model.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            seen: Any = self.get_image_features(pixel_values, image_sizes).pooler_output
            places = (input_ids == self.config.image_token_id).unsqueeze(-1)
            states = states.masked_scatter(places, torch.cat([features.to(states) for features in seen]))
        return self.language_model(
            inputs_embeds=states,
            attention_mask=self.mask(input_ids, states, attention_mask, past_key_values),
            past_key_values=past_key_values,
            **options,
        )


class ForeignForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """A body and its language head; a subclass names the body."""

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    body: type[ForeignModel]

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = self.body(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_output_embeddings(self) -> nn.Module:
        """The language head."""
        head: nn.Module = self.lm_head
        return head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Any = None,
        pixel_values: Any = None,
        image_sizes: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        logits_to_keep: int = 0,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, of the last ``logits_to_keep`` places only unless it is 0."""
        body = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **options,
        )
        logits = self.lm_head(body.last_hidden_state[:, -logits_to_keep:])
        return CausalLMOutputWithPast(logits=logits, past_key_values=body.past_key_values)
