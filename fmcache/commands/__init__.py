"""All commands and tables of the terminal: parse, call, print. Imports what is called and shown."""
