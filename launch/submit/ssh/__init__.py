"""Hosts that are reached by ssh, and share a folder."""

from launch.submit.ssh.place import SshPlace

__all__ = ["SshPlace"]
