"""Units of work: what identifies one, and how each is run once and its result remembered."""
