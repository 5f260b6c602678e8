"""What a running guard tells its operator: metrics, spans and an audit log, one file each, behind one protocol."""
