"""Fixtures for the tests of the pipelines."""

from tests.s3_server import s3_server, s3_uri

__all__ = ["s3_server", "s3_uri"]
