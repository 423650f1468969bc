"""Intervals, pairs, ranks, and what would settle a study: numbers only. Imports scores."""
