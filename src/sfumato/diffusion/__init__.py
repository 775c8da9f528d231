"""The mathematics of diffusion: levels, schedules, Gaussians, parameterizations, denoisers and objectives."""
