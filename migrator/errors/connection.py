# SPDX-License-Identifier: GPL-2.0-or-later
"""The way to the other host, and what it allows."""

from __future__ import annotations

from migrator.errors import MigratorError


class NotAllowed(MigratorError):
    """{host_name} does not allow {caller} to do that: {reason}."""

    status = 41
    cure = "{fix}"


class ConsentNeeded(MigratorError):
    """{host_name} does not accept from {caller} what reaches outside the container {name}: {lines}."""

    status = 49
    cure = "Remove these lines and restart the container, or, to trust them there: {fix}"


class DestinationInvalid(MigratorError):
    """{destination} is not a valid destination: {reason}."""

    status = 40
    cure = "Write it as [user@]host[:port], with an IPv6 address in brackets."


class HostUnreachable(MigratorError):
    """{destination} cannot be reached: {reason}."""

    silent = False  # whether nothing at all came back from that host's own address, not even a refusal
    answered = False  # whether a machine at that very address refused the connection
    status = 42
    cure = "Check name, address, port and firewall with: ssh -v {destination}"


class HostKeyUnknown(MigratorError):
    """{destination} is not in known_hosts; it offers the {key_type} key {fingerprint}."""

    status = 43
    cure = """Compare this with the fingerprint on {destination}: ssh-keygen -lf {key_file} -- if it is the same, add
        --accept-new-host-key."""


class HostKeyChanged(MigratorError):
    """THE HOST KEY OF {destination} HAS CHANGED: it offers the {key_type} key {fingerprint}, but known_hosts has a
    different one. Someone may be intercepting the connection."""

    status = 44
    cure = "Find out why. If the key was changed on purpose: ssh-keygen -R {known_hosts_name}"


class SshRefused(MigratorError):
    """{destination} refused the login as {user}: {reason}."""

    status = 45
    cure = "Allow this host's root to log in: ssh-copy-id {destination}"


class RemoteMissing(MigratorError):
    """migrator cannot be started on {destination}: {reason}."""

    status = 46
    cure = "Install the same version of migrator there, and check that `ssh {destination} migrator --version` works."


class ProtocolError(MigratorError):
    """The other host does not follow the protocol: {reason}."""

    status = 47
    cure = "Install the same version of migrator on both hosts."


class ConnectionLost(MigratorError):
    """The connection to {destination} was lost: {reason}."""

    status = 48
    cure = "Check the network and that host."
