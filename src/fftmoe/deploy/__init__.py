"""What a federation of many machines needs before its first round: certificates, keys, and who gets which file."""
