"""What a recipe will cost, before anything runs. Imports stages, decoders, encoders, cache and runtime."""
