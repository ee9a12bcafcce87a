# SPDX-License-Identifier: GPL-2.0-or-later
"""Will this container survive the move? Takes facts about both hosts and the container; returns findings.

`host_facts` and `container_facts` look at the system; `checks` are pure functions of what they saw.
"""
