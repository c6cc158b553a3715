"""Where objects come from: one protocol, an S3 client and a folder that speak it, and wrappers around them."""
