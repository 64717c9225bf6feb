"""The traffic's path: server.py starts and ends it, listener.py lets clients in, connection.py knows them,
relay.py moves their bytes."""
