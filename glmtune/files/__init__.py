"""Files and folders on this machine: their names, their kinds, how they are written, the cache."""
