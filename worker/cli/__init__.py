"""What people type. Words for people go to stderr, data to stdout."""
