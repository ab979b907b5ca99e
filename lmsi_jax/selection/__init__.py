"""Pure functions over votes and paths: what to keep, and when to stop."""
