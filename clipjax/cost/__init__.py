"""What a program costs: FLOPs, peaks of devices, compiled programs read."""
