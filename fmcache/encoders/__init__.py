"""Cards, weights and their key names, loading, token grids, controls. Imports the ground floor only."""
