"""What a model costs before it exists: parameters, bytes and FLOPs from its config and settings alone; no torch."""
