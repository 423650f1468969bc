"""What makes and checks a manifest. Imports slides, tiles and runtime, never stages."""
