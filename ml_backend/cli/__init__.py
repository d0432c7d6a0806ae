"""What people type: the local stack, the doctor, progress bars of scripts."""
