"""How the generated parts of the pages are made; `make_tables.py` has the list of kinds."""
