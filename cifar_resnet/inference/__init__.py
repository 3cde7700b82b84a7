"""A trained network at work: predictions for any image files, and exports to other formats."""
