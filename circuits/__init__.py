"""What computes it: subnetworks, attributions, programs."""
