"""Pure functions on tensors: losses, advantages, rewards."""
