"""Reports of a running guard to its operator: metrics, spans and an audit log. Internal."""
