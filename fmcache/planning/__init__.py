"""The cost of a recipe before anything runs. Imports stages, decoders, encoders, cache and runtime."""
