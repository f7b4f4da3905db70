"""To and from other libraries. Each is imported only where it is asked for."""
