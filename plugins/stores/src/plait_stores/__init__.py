"""Runs on object stores: ``plait run --out s3://bucket/run``. The class is `plait_stores.directory.StoredDirectory`."""
