"""One file for each backend, behind the interface in `base`; `registry` lists them."""
