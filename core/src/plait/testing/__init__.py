"""Testing kit: what plait's own tests and plugin authors use to check a run the hard way."""
