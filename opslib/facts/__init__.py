"""What was seen, as frozen rows: one reading of a deployment, and what of it stayed unseen."""
