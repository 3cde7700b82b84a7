"""Images: where they come from, how a file becomes pixels, and how pixels become augmented batches."""
