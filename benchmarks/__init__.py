"""Benchmarks of the project, one command each."""
