"""The modules of pipelines/torture.py: a tiny study, commands that can be killed, kills, faults."""
