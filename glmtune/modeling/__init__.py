"""Loading, adapting and the loss of models."""
