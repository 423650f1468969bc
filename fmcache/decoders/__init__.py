"""The decoder, its fast form, losses, batches and training. Imports cache and scores."""
