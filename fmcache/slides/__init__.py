"""Opening slides, grids of tiles on them, annotated regions over a grid. Imports tiles."""
