"""Causal language modelling, which makes a base."""
