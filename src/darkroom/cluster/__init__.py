"""Lists of prompts, and more machines: here or through Ray, which is imported in this room alone."""
