"""Rows of every file and format, read to conversations."""
