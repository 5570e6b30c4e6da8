"""Methods of training: what a row becomes, how rows become a batch, what the loss is."""
