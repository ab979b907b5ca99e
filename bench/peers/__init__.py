"""One module per system that decodes the benchmark's workloads: python -m bench.peers.NAME"""
