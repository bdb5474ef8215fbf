"""Parts of bench/nearline.py: what the life of an item index costs."""
