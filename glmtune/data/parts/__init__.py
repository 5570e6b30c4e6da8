"""What a row is made of, in every format: texts, tool schemas, calls and their results, media."""
