"""Bundles: one fitted run in a folder that works without fmcache. Imports encoders, decoders, scores and report."""
