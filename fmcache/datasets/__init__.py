"""Functions that make and check a manifest. Imports slides, tiles and runtime, never stages."""
