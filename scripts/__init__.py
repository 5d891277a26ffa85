"""Scripts of the project: the embedded VLM, several seeds, pictures."""
