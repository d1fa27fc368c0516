"""Benchmarks, metrics and significance."""
