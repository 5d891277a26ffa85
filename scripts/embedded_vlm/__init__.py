"""Makes the embedded model: generated pictures, tokenizer, training in stages, evaluation."""
