"""At the limits: many threads, forks, Ctrl-C, no memory, a collection closed meanwhile."""
