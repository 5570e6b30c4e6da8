"""What happens around the steps; the trainer knows none of it."""
