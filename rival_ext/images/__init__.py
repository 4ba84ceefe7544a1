"""Image files: decoding them within bounds, and transforming them."""
