"""Adapters: their settings, the layers they sit on, how they begin."""
