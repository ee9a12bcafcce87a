# SPDX-License-Identifier: GPL-2.0-or-later
#
#   make demo     move a running container between two hosts made on this machine, and see the figures
#   make test     the checks and tests for every change
#   make test-all every test: all cells of the fault matrix, many more examples, the equipment, the mutants; writes the
#                 pages in docs/
#
# All of them do their own set-up, on a Debian machine (12 or newer), as root. They also work offline once that is done.
#
#   make test-mutants  is there a line that could be wrong without a test noticing? (an hour, or more)
#   make test-vagrant  the Vagrantfile, booted: emulated virtual machines (a quarter of an hour)
#   make test-vm  moves between two virtual machines with Debian 13; not part of make test, as it is slow without KVM
#   make lint     the linters alone          make docs     man pages, shell completions, tables in docs/
#   make fast     tests without two hosts    make clean    remove what was made here and end the rigs
#   make deb      the Debian package, for Debian 13, into build/deb (SUITE=..., ARCH=...); make test-deb tries it out
#   make bench    how fast it is, as a table (bench/ has more); no test looks at a clock
#
# make test ARGS="-k restore -x" hands ARGS to pytest.

PYTHON = python3
ARGS =
SUITE = trixie
ARCH =
BIN = .venv/bin
PYTEST = $(BIN)/pytest
# Four tests at a time, as most of them wait for something, each on a rig of its own; and then those that need the
# machine to themselves: the fault matrix. ARGS go to a single pytest, which runs one test at a time.
EVERY_TEST = $(if $(ARGS),$(PYTEST) $(ARGS),$(PYTEST) -n 4 --dist loadfile --no-loadscope-reorder -m "not alone" \
    && $(PYTEST) -m alone -o testpaths=tests/rig/test_fault_matrix.py)
# mutmut is not in an extra of setup.cfg: nothing else needs it, and setup.cfg is part of the digest of the equipment.
# Its version is fixed, as tests/mutants/operators.py patches its internals.
MUTANTS = $(BIN)/python -m pip install -q --disable-pip-version-check 'mutmut==3.8.1' && $(BIN)/python -m tests.mutants
# Container images often set this: each of those processes would compile all tests again.
unexport PYTHONDONTWRITEBYTECODE

# What the rig is made with: root file systems, namespaces, links, loop devices.
RIG_PACKAGES = ca-certificates iproute2 mmdebstrap mount nftables python3 uidmap util-linux
# What the tests need in addition.
TEST_PACKAGES = btrfs-progs groff-base openssh-client openssh-server procps python3-venv shellcheck strace systemd vagrant \
    vagrant-libvirt
# What boots the Vagrantfile; the last two are part of libvirt-daemon in Debian 12.
VAGRANT_PACKAGES = dnsmasq-base e2fsprogs iptables libvirt-daemon libvirt-daemon-driver-qemu qemu-system-x86 qemu-utils rsync \
    $(if $(shell grep -x 'VERSION_ID="12"' /etc/os-release),,libvirt-daemon-driver-network libvirt-daemon-driver-storage)

# What the rig of virtual machines needs in addition.
VM_PACKAGES = e2fsprogs qemu-system-x86 qemu-utils

.PHONY: demo test test-all test-mutants test-equipment test-vagrant test-vm fast bench deb test-deb lint docs clean
.PHONY: rig-packages packages vm-packages
.DELETE_ON_ERROR:

demo: rig-packages
	$(PYTHON) -m bench.demo

test: packages .venv/ready
	$(EVERY_TEST)

# Pages in docs/ are written only here. With ARGS, which are for pytest, no mutants are made.
test-all: export MIGRATOR_TESTS = all
test-all: packages .venv/ready
	$(BIN)/python -m tests.equipment; equipment=$$?; $(EVERY_TEST) $(if $(ARGS),,&& $(MUTANTS)) && exit $$equipment

# Only the tests of the rig; tests/equipment.digest records what they have passed for.
test-equipment: packages .venv/ready
	$(BIN)/python -m tests.equipment

# Mutants of the code on which the promises depend.
test-mutants: packages .venv/ready
	$(MUTANTS)

# Virtual machines with a libvirt of their own. Not part of the others: it takes long, and QEMU.
test-vagrant: packages .venv/ready
	@.ci/packages $(VAGRANT_PACKAGES)
	$(PYTEST) tests/test_vagrant.py $(ARGS)

test-vm: packages vm-packages .venv/ready
	$(PYTEST) tests/vm $(ARGS)

vm-packages: rig-packages
	@.ci/packages $(VM_PACKAGES)

fast: packages .venv/ready
	$(PYTEST) --ignore tests/rig $(ARGS)

bench: packages .venv/ready
	$(BIN)/python -m bench.speeds

deb: rig-packages
	$(PYTHON) vagrant/deb $(SUITE) $(ARCH)

# In a new Debian 13, and on the rig's hosts.
test-deb: packages .venv/ready
	$(PYTEST) tests/test_deb.py tests/rig/test_deb_rig.py $(ARGS)

lint: packages .venv/ready
	$(PYTEST) -q tests/test_lint.py $(ARGS)

docs: .venv/ready
	$(BIN)/python -m migrator.manual build/share
	$(BIN)/python -m migrator.manual --errors >docs/errors.md
	$(BIN)/python -m migrator.preflight.survey >docs/findings.md
	$(BIN)/python -m tests.model.explorer >docs/model.md
	$(BIN)/python docs/picture.py >docs/picture.svg

rig-packages:
	@.ci/packages $(RIG_PACKAGES)

packages:
	@.ci/packages $(RIG_PACKAGES) $(TEST_PACKAGES)

# Run-time dependencies and the `test` extra of setup.cfg; rebuilt when that file changes.
.venv/ready: setup.cfg
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[test]'
	@touch $@

clean:
	for name in test test-vm test-of-rig $(foreach n,0 1 2 3,test-gw$n test-gw$n-nat test-gw$n-of-rig) test-nat demo endurance bench; do [ ! -e /run/migrator-rig-$$name ] || MIGRATOR_RIG=$$name vagrant/rig down; done
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
