"""The page: runs watched in a browser, by a process that imports no torch."""
