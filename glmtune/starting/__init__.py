"""From what a user has to the first run: rows, or the configuration of another tool."""
