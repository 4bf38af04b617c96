"""Benchmark scoring: prompts, option log-probabilities, answer extraction, statistics and the report."""
