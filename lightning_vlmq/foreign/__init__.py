"""VLMs that transformers does not have, put together from parts that it has: MoonDream2 and xGen-MM.

Neither was run with its published weights: docs/models.md says what was checked. Importing does nothing; transformers
knows a model from the first time that a folder of it is asked for (``loading.py``).
"""
