"""Samplers: grids, the one loop, and a step function per method."""
