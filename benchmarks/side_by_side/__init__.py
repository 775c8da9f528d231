"""Samplers of several libraries on data whose exact denoiser and exact probability flow are known."""
