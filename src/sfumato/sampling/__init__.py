"""Samplers: grids of levels, the sampling loop, and one step function per method."""
