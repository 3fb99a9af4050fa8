"""Take K real steps of the user's own objects, and compare a first call with them."""
