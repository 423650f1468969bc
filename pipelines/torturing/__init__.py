"""What pipelines/torture.py is made of: a tiny study, commands that can be killed, kills, faults."""
