"""Pixels only: images, masks, annotations, views, demo tiles. Imports only the base modules of fmcache."""
