"""`python -m darkroom`: the same command as `darkroom`."""

from darkroom.cli import main

main()
