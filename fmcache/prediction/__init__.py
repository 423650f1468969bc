"""Windows over a picture, blending, a study's model. Imports tiles, maps, encoders, decoders, cache and runtime."""
