"""Launchers: several processes on one machine, TPU VMs, GKE. Scripts of a checkout."""
