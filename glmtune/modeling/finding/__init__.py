"""Models found and looked at, before anything heavy is imported."""
