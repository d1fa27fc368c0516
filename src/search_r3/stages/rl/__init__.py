"""The RL stage: sample, refresh, score, learn."""
