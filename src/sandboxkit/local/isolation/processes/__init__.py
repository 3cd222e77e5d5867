"""The processes of a box, as the host sees and stops them."""
