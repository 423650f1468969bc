"""Intervals, pairs, ranks, and the test units a study would need: numbers only. Imports scores."""
