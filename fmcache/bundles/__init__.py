"""Bundles: a run in a folder that works without fmcache. Imports cache, encoders, decoders, scores and report."""
