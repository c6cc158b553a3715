"""Child processes, the memory they share, and the messages they exchange."""
