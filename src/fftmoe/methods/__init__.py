"""What is trained, sent and merged."""
