"""The epoch loop and the supervised update that the vision programs share."""
