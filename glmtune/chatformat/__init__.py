"""A conversation to token ids and labels through the chat template, and an answer back to its parts."""
