"""Working folders at a URL: objects, local copies, leases. Imports the ground floor, cache, scores, runtime."""
