"""Settings: every dataclass that a person sets, and the gin edge."""
