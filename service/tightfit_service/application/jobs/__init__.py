"""Jobs as the API sees them: examined, queued, listed, and joined to the search."""
