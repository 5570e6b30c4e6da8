"""Files of every kind to rows that know where they came from."""
