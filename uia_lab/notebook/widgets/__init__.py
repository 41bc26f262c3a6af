"""What a notebook shows: one Python class and one JavaScript file a widget, no build step."""
