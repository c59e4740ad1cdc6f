"""A model behind HTTP: Flask application, micro-batching, server processes, load generator, scale-out."""
