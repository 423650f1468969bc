"""Runners, prefetch, progress, devices, sizes; nothing of pathology. Imports errors and shortage only."""
