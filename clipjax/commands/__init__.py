"""What the commands do, each with its own parser."""
