"""HTTP routes beside the page, on the same port."""
