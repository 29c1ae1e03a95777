"""Small real engines, looked at from inside: tests beside the modules of `engine/`."""
