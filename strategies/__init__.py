"""What can be swapped: pure functions of arrays and records. No disk, no network, no configuration."""
