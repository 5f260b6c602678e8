"""What the fault suite's tests share: the list of rows, the page that they are written to, experts that fail."""
