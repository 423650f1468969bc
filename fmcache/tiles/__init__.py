"""Pixels only: images, masks, annotations, views, drawn tiles. Imports the ground floor alone."""
