"""Networks; they know nothing of diffusion."""
