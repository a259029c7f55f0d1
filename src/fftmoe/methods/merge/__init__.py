"""How updates become one delta, and a delta the next global model."""
