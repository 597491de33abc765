"""See: what a person sees of what lives, and does with it by hand."""
