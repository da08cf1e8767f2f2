"""What takes a whole network and changes how it runs. Networks never import it."""
