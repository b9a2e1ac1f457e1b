"""Faults under load, round after round: whether everything heals by itself, and nothing is lost, or comes twice in silence."""
