"""Generating answers and scoring them."""
