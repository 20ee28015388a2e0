"""The Network Block Device protocol over sockets: the client that reads exports, and the server that offers them."""
