"""Summary, notes, tables and figures of results. Imports scores."""
