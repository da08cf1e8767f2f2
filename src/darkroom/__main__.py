"""`python -m darkroom`: the same command as `darkroom`."""

from .cli import main

main()
