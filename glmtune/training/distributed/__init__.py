"""A run over many processes: DeepSpeed, FSDP, and what they need to agree on."""
