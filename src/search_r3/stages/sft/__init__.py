"""The SFT stage: text, KL, contrast and margin in one step."""
