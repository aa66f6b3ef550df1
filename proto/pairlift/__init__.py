"""What other languages share with Pairlift: the wire contract."""
