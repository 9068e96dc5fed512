"""Pictures of pages, as inline SVG in the colours of the stylesheet."""
