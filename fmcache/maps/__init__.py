"""Write a label map that arrives in bands, for viewers: polygons, pyramids, overview, areas. Imports tiles."""
