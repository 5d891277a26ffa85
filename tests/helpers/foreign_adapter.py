"""The small foreign VLM (``foreign_vlm.py``) as a model of transformers: all that lightning_vlmq asks for."""

from typing import Any

import torch
from foreign_vlm import Block, Eye, Network
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    DynamicCache,
    GenerationMixin,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipImageProcessorPil,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast

from lightning_vlmq import VLM

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}<end_of_utterance>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


class ForeignConfig(PreTrainedConfig):
    """Shape of the network: ``text_config`` says it of the language model, ``vision_config`` of the eye."""

    model_type = "foreign_vlm"
    sub_configs = {"text_config": PreTrainedConfig, "vision_config": PreTrainedConfig}  # noqa: RUF012

    def __init__(self, text_config: Any = None, vision_config: Any = None, image_token_id: int = 0, **others: Any):
        parts = [PreTrainedConfig(**c) if isinstance(c, dict) else c for c in (text_config, vision_config)]
        self.text_config, self.vision_config = (part or PreTrainedConfig() for part in parts)
        self.image_token_id = image_token_id
        super().__init__(**others)


class Layer(GradientCheckpointingLayer):
    """A block; what stands in ``layers`` of the language model can be chosen, checkpointed and run once."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.block = Block(width, heads)

    def forward(self, x: Tensor, allowed: Tensor, recall: Any = None) -> Tensor:
        return self.block(x, allowed, recall)


class Language(nn.Module):
    """Words, places and layers: the part that gets an adapter."""

    def __init__(self, vocab_size: int, hidden_size: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, hidden_size)
        self.places = nn.Embedding(1024, hidden_size)
        self.layers = nn.ModuleList(Layer(hidden_size, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden_size)


class ForeignModel(PreTrainedModel):
    """Body: tokens and pixels to last hidden states."""

    config: ForeignConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True

    def __init__(self, config: ForeignConfig) -> None:
        super().__init__(config)
        text, vision = config.text_config, config.vision_config
        self.eye = Eye(text.hidden_size, vision.image_size, vision.patch_size)
        self.language_model = Language(text.vocab_size, text.hidden_size, text.num_hidden_layers, text.heads)
        self.post_init()

    def get_image_features(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(pooler_output=self.eye(pixel_values))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        part = self.language_model
        x = part.embed_tokens(input_ids)
        if pixel_values is not None:  # of all pictures of the batch, in reading order
            features = self.get_image_features(pixel_values).pooler_output
            x = x.masked_scatter((input_ids == self.config.image_token_id).unsqueeze(-1), features.to(x))
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        total = seen + input_ids.shape[1]
        kept = torch.ones_like(x[:, :1, 0]).expand(-1, total) if attention_mask is None else attention_mask
        # padding may stand on either side: a place is counted from the row's first token
        x = x + part.places((kept.long().cumsum(-1) - 1).clamp(min=0)[:, seen:])
        ever = torch.ones(total, total, dtype=torch.bool, device=x.device)
        # a padded place sees itself, or its softmax would be of nothing
        allowed = ((ever.tril() & kept.bool().unsqueeze(1)) | (ever.tril() & ever.triu()))[:, seen:]
        for index, layer in enumerate(part.layers):
            recall = None if past_key_values is None else lambda k, v, i=index: past_key_values.update(k, v, i)
            x = layer(x, allowed, recall)
        return BaseModelOutputWithPast(last_hidden_state=part.norm(x), past_key_values=past_key_values)


class ForeignForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Body and language head."""

    config: ForeignConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True

    def __init__(self, config: ForeignConfig) -> None:
        super().__init__(config)
        self.model = ForeignModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(
        self, input_ids: Tensor, attention_mask: Any = None, pixel_values: Any = None, **options: Any
    ) -> CausalLMOutputWithPast:
        body = self.model(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values, **options)
        logits = self.lm_head(body.last_hidden_state) * self.config.text_config.logit_scale
        return CausalLMOutputWithPast(logits=logits, past_key_values=body.past_key_values)


def register() -> None:
    """Makes the model known to transformers; often is as good as once."""
    AutoConfig.register(ForeignConfig.model_type, ForeignConfig, exist_ok=True)
    AutoModelForImageTextToText.register(ForeignConfig, ForeignForConditionalGeneration, exist_ok=True)


class ForeignVLM(VLM):
    """What a configuration names as ``class_path``: transformers knows the model from then on."""

    def __init__(self, name: str, **options: Any) -> None:
        register()
        super().__init__(name, **options)


def adapted(network: Network, tokenizer: Any) -> tuple[Any, Any]:
    """The network's weights as a model of transformers, and a processor; ``save_pretrained`` of both makes a folder."""
    register()
    side, patch = 32, network.eye.cut.stride[0]
    words, width = network.words.shape
    text = {"vocab_size": words, "hidden_size": width, "num_hidden_layers": len(network.blocks)}
    text |= {"heads": network.blocks[0].heads, "logit_scale": network.loudness, "pad_token_id": tokenizer.pad_token_id}
    vision = {"image_size": side, "patch_size": patch}
    config = ForeignConfig(text, vision, tokenizer.image_token_id, tie_word_embeddings=False)
    model = ForeignForConditionalGeneration(config)
    names = {
        "eye.": "model.eye.",
        "words": "model.language_model.embed_tokens.weight",
        "places": "model.language_model.places.weight",
        "norm.": "model.language_model.norm.",
        "say.": "lm_head.",
    }
    names |= {f"blocks.{i}.": f"model.language_model.layers.{i}.block." for i in range(len(network.blocks))}
    renamed = {
        next(new + name.removeprefix(old) for old, new in names.items() if name.startswith(old)): weight
        for name, weight in network.state_dict().items()
    }
    model.load_state_dict(renamed)  # refuses names that are missing or left over
    pictures = SiglipImageProcessorPil(size={"height": side, "width": side}, resample=3)
    processor = LlavaProcessor(
        pictures, tokenizer, patch_size=patch, vision_feature_select_strategy="full", chat_template=TEMPLATE
    )
    return model, processor
