"""What people do with a checkpoint: chat with it, serve it, export it."""
