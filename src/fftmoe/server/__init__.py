"""What the server does in a round."""
