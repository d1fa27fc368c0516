"""What a command line becomes: composed, checked, in a run folder."""
