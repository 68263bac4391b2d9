"""What this tool starts on this machine for itself: processes, and servers that nobody else may use."""
