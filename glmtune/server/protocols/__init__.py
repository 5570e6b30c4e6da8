"""What the clients of each protocol read: answers, whole or as a stream, in the form that they know."""
