"""fastkto inside the trainers that people already run: one module a host, each refusing versions it does not know."""
