"""Encoders of conditions into the slots of a network, and what drops them."""
