"""Runs from outside: what each folder says of its run, and a word that ends one. Imports no torch."""
