"""Strategies beside each other: the same hospitals, seeds, budgets and steps, so that labels alone are what differs."""
