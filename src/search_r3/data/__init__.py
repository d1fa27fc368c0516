"""Records, their readers, and the rules by which they are mined."""
