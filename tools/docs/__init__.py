"""Generated parts of the documentation: settings, pictures."""
