"""The networks, torch only: no files, no prompts, no noise levels. What they call lies in `kernels`."""
