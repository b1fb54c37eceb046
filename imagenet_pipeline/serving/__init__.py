"""A page on this machine on which a trained run looks at photos."""
