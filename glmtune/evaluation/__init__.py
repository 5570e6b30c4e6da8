"""Scoring a model: its loss, its answers, its tool calls."""
