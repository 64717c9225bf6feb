"""What bytes mean. Decoders are sans-I/O (decoder.py says the rules), registry.py lists them, tap.py feeds them."""
