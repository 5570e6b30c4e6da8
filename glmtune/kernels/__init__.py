"""The loss, fused layers and packed attention: what makes a step fast, each equal to the plain computation."""
