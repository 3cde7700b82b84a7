"""From predictions to figures, maps and pictures; no Lightning."""
