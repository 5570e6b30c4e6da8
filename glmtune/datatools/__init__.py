"""Rows looked at, counted and drawn, without training."""
