"""Extract, fit and report, and their identities and places. Imports all rooms but commands, planning, datasets."""
