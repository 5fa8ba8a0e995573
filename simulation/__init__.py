"""Many hospitals on one machine: synthetic patients, splits, simulated experts, and Flower's Grid in one process or on Ray."""
