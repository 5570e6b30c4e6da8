"""Models: found, checked, loaded, and put under adapters."""
