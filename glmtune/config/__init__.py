"""One YAML file to one checked configuration."""
