"""Training stages and the optimization step they share."""
