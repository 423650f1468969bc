"""The decoder, its fast form, losses, batches, training. Imports cache and scores."""
