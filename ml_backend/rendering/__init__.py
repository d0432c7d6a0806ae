"""Videos and images with boxes drawn on them."""
