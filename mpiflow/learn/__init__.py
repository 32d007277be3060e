"""Learning macroscopic dynamics from microscopic simulation (needs torch)."""
