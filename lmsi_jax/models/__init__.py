"""The decoder, its configuration, and how its arrays are laid out over a mesh."""
