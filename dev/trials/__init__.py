"""Scripts of trials in the experiment log whose design is not in the package."""
