"""The decode engine: requests in, samples out, around attention over shared prompts."""
