"""What decode steps cost on this machine: measured, and kept from one process to the next."""
