"""Small real models, made in seconds: one module for each, each with a function `build(folder, …) -> Path`."""
