"""Open slides, plan grids of tiles on them, read them as one picture, find tissue, draw regions. Imports tiles."""
