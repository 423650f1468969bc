"""Runners, prefetch, progress, devices, sizes; knows no pathology. Imports errors and shortage alone."""
