"""From small lattices to large ones: upsampling, relaxation, partial evolution."""
