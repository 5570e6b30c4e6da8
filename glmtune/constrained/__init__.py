"""Answers that have to follow something: a JSON Schema, a pattern, a choice, a grammar, a function's parameters."""
