"""The suite's laboratory: two right stores built differently from the project's own, and many broken ones."""
