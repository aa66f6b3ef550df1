"""Version 1 of the wire contract; `ranking_pb2*` are generated from `ranking.proto` (`make proto`)."""
