"""One hospital: its images, its pool, its experts, its training, and the gate on all that leaves it."""
