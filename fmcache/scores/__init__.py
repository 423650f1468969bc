"""Counts, Dice, and the results table. Imports the ground floor only."""
