"""Open slides, plan grids of tiles on them, and draw annotated regions over a grid. Imports tiles."""
