"""Tables of training steps that were compiled for TPUs."""
