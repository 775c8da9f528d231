"""Training: the step, the loop, the running average of the weights, and checkpoints."""
