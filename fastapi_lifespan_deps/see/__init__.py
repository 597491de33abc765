"""See: what a person, or a machine, sees of what lives."""
