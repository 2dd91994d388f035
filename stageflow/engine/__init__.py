"""The engine: a plan's stages as worker pools joined by channels. It knows no file, no screen and no command line."""
