"""Asking a model: prompts to tokens, and tokens to text."""
