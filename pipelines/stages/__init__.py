"""One Ray Data operator a module; a stage never imports another stage."""
