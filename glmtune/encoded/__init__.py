"""Encoded rows: kept on disk, mixed, split, and put together to batches."""
