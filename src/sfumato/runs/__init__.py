"""Training into a directory."""
