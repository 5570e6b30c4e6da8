"""Between a client and the application: who may ask, how long a connection lasts, and the log of requests."""
