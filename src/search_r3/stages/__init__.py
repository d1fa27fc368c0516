"""Training stages, and the optimization step that they share."""
