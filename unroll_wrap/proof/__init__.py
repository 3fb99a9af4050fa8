"""K real steps of the user's own objects, and the comparison of a first call with them."""
