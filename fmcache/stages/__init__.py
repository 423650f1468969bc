"""Extract, fit and report, with identities and paths. Imports all packages except commands, planning and datasets."""
