# SPDX-License-Identifier: GPL-2.0-or-later
"""Will this container survive the move? Facts of both hosts and of the container in, findings out.

`host_facts` and `container_facts` look at the system; `checks` is a pure function of what they saw.
"""
