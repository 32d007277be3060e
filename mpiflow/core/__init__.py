"""Sites, halos, noise, the device, ranks and errors: what everything else stands on."""
