"""What one does with a denoiser: sample, edit, evaluate, calibrate."""
