"""A toy world of captioned scenes with known truth, and an oracle that reads pictures back."""
