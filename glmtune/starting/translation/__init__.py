"""Configurations of other tools, key by key, to ours: every key is translated, or listed with the reason."""
