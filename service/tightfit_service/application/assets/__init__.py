"""What users upload: models, datasets, the room that they may take."""
