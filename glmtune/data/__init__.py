"""Rows in, labelled token ids out."""
