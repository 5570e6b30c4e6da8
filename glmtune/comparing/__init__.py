"""Two or more models over the same rows: what training has changed, and whether the change is more than chance."""
