"""Functions of tensors and layers that networks call: on each device in the way that is fastest there."""
