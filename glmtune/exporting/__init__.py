"""A checkpoint as a folder that other tools load."""
