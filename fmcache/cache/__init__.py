"""The format on disk: header, layout, encoding, writer, reader. Imports the ground floor only."""
