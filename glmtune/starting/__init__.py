"""From a user's own rows to the first configuration, fitted to them, to the model and to this machine."""
