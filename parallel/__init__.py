"""Ranks and what they share: grid, communication, parameters, layers, schedules, optimizer, training state."""
