"""Bytes and listings on disk, kept between mounts."""
