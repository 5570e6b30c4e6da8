"""A checkpoint behind OpenAI's API."""
