"""Text as it is shown and written: harmless to look at, without secrets, in columns."""
