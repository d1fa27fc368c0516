"""Benchmarks that a user can start: what freshness costs, and whether it scales."""
