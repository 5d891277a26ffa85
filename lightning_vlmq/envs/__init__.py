"""Environments that speak text and pictures, and the one wrapper that serves them to an agent."""
