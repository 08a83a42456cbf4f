"""What an exported model needs around it, in numpy: it runs where torch is not installed."""
