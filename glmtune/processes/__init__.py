"""Processes: how they are started, what they tell each other, how they end."""
