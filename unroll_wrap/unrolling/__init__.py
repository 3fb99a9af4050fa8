"""K optimizer steps of the discriminator, each with its pullback."""
