"""Every verb and every table for the terminal: parse, call, print. Imports what is called and shown."""
