"""What a representation holds, and what it loses."""
