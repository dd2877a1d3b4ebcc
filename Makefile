# Every target can be called alone; each prints `N passed, N failed` as its last line where it tests anything.
# It wants root on Debian 12, Rust, Go and the package registries. T=words narrows most of them.

CARGO  := cargo
FLAGS  := --profile rig --all-features
TARGET := $(or $(CARGO_TARGET_DIR),target)
RIG    := $(TARGET)/rig/coffer-rig
T      :=
FAULTS := kills:: crowds:: refusals:: power:: soak:: tamper::

# Libraries are compiled once for all checkouts; what is made of this one's own code is in it.
export CARGO_BUILD_BUILD_DIR ?= $(HOME)/.cache/coffer/cargo

# Of the tools of Rust these are no part of the toolchain.
DENY_VERSION := 0.20.2
DENY         := $(HOME)/.cache/coffer/cargo-deny-$(DENY_VERSION)/bin/cargo-deny
FUZZ_VERSION := 0.13.2
FUZZ         := $(HOME)/.cache/coffer/cargo-fuzz-$(FUZZ_VERSION)/bin/cargo-fuzz

PACKAGES := mmdebstrap qemu-system-x86 swtpm libcryptsetup-dev libclang-dev clang libtss2-dev tpm2-tools \
            cryptsetup-bin e2fsprogs xfsprogs buildah pkg-config iproute2 jq strace openssl

.PHONY: setup own build lint unit fuzz fuzz-short fuzz-targets csi scenarios kills power-cuts kbs chart manifests api \
        kernel faults sanity demo cluster conformance conformance-short tamper test soak bench shell down

# Debian packages that are missing; asks the mirror only if one is.
setup:
	@missing=$$(for package in $(PACKAGES); do dpkg -s $$package >/dev/null 2>&1 || echo $$package; done); \
	if [ -n "$$missing" ]; then \
	    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $$missing; \
	fi

# Cargo knows by its age whether code was compiled. In a directory that is shared, what another checkout left looks
# newer than it is: whoever comes after another one compiles its own code anew.
own:
	@owner=$(CARGO_BUILD_BUILD_DIR)/checkout; \
	if [ "$$(cat $$owner 2>/dev/null)" != "$(CURDIR)" ]; then \
	    rm -rf $(CARGO_BUILD_BUILD_DIR)/*/.fingerprint/coffer-* $(CARGO_BUILD_BUILD_DIR)/*/*/.fingerprint/coffer-*; \
	    mkdir -p $(CARGO_BUILD_BUILD_DIR) && echo "$(CURDIR)" >$$owner; \
	fi

build: setup own
	$(CARGO) build --profile rig --bin coffer
	install -D $(TARGET)/rig/coffer $(TARGET)/shipped/coffer
	$(CARGO) build $(FLAGS) --bins

lint: setup own $(DENY)
	$(CARGO) fmt --check
	$(CARGO) fmt --check --manifest-path fuzz/Cargo.toml
	$(CARGO) clippy $(FLAGS) --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(FLAGS) --no-deps
	$(DENY) --all-features check licenses bans sources

$(DENY):
	$(CARGO) install cargo-deny --version $(DENY_VERSION) --locked --root $(abspath $(@D)/..)

$(FUZZ):
	$(CARGO) install cargo-fuzz --version $(FUZZ_VERSION) --locked --root $(abspath $(@D)/..)

# Tests of the library and of the programs: no kernel, no TPM.
unit: build
	$(RIG) unit '$(T)'

# Everything that reads an attacker's bytes, under a fuzzer: the stored cases, then new ones for SECONDS. The short one is
# for CI.
fuzz: SECONDS := 600
fuzz-short: SECONDS := 10
fuzz fuzz-short: fuzz-targets
	$(RIG) fuzz --programs $(TARGET)/fuzz/$(shell uname -m)-unknown-linux-gnu/release --seconds $(SECONDS) '$(T)'

# Without a sanitizer, which wants an unstable compiler and everything compiled anew: what is fuzzed has no unsafe code.
fuzz-targets: build $(FUZZ)
	$(FUZZ) build --sanitizer none --target-dir $(TARGET)/fuzz

# Every cell of the CSI's error table over the real socket.
csi: build
	$(RIG) target csi '$(T)'

# The driver's key source against dev-kbs, with a software TPM.
kbs: build
	$(RIG) target kbs '$(T)'

# The real kernel, file systems and TPM in a node without Kubernetes.
kernel: build
	$(RIG) kernel $(if $(T),'$(T)',$(addprefix --skip ,$(FAULTS)))

# The rest of these tests, on a node of their own: the driver killed at a sample of the calls that change anything, a few
# power cuts, fifty volumes at once, a KBS that fails in every way, a sample of what a hostile disk can hold.
faults: build
	$(RIG) --run .rig/faults kernel '$(FAULTS)'

# Everything that a hostile disk can hold, each header also shown to stock cryptsetup; `docs/tampering.md` says what comes
# of it. What was seen is in .rig/tamper/kernel/node1/log.
tamper: build
	$(RIG) --run .rig/tamper kernel --soak '$(or $(T),tamper::)'

# The chart: linter, values, resource types as in the source, `deploy/` as rendered.
chart: build
	$(RIG) chart '$(T)'

# Writes what is generated: the chart's resource types and `deploy/`.
manifests: build
	COFFER_WRITE=1 $(RIG) chart

# The cluster's half against a real API server, without a node.
api: build
	$(RIG) api '$(T)'

# The story of one volume on a real Kubernetes, visibly; KEEP=1 leaves the rig up.
demo: build
	$(RIG) demo $(if $(KEEP),--keep)

# The same story as a test, then a scenario of each area and a part of Kubernetes' storage suite in the same cluster.
cluster: build
	$(RIG) tour

# What must hold whatever happens to pods, nodes, driver and control plane.
scenarios: build
	$(RIG) scenarios $(if $(KEEP),--keep) '$(T)'

# Kubernetes' own storage suite, every case of what Coffer claims to do; KEEP=1 leaves the rig up.
conformance: build
	$(RIG) conformance $(if $(KEEP),--keep) '$(T)'

# One case of it for each kind of volume and each feature.
conformance-short: build
	$(RIG) --run .rig/short conformance --representative

# csi-sanity in full against the real kernel, with mounts and with block devices.
sanity: build
	$(RIG) sanity

# Everything of the above but the whole of Kubernetes' suite; CI runs this.
test: lint build
	$(RIG) all

# The driver killed before calls that change anything, with ext4 before every one, a thousand times and more, on two nodes
# at once. Parts that have passed are not run again until the programs change; T=kills-3-of names one.
kills: build
	$(RIG) --run .rig/soak soak kills '$(T)'

# Two hundred copies of the disk for each profile, as a power cut may leave it. In parts likewise.
power-cuts: build
	$(RIG) --run .rig/soak soak power-cuts '$(T)'

# All of it, whole: kills, power cuts, and every scenario. It goes on where it was ended.
soak: build
	$(RIG) soak

# On a node, ratios against cryptsetup by hand and by default, throughput, memory; in a cluster, the way from a claim to a
# running pod. T=node or T=cluster for one of them, ROUNDS=1 for a short look. No test. It measures what the Dockerfile
# builds.
bench: setup own
	$(CARGO) build --profile dist --bin coffer
	install -D $(TARGET)/dist/coffer $(TARGET)/shipped/coffer
	$(CARGO) build --profile dist --all-features --bins
	$(TARGET)/dist/coffer-rig bench $(if $(ROUNDS),--rounds $(ROUNDS)) $(T)

# A shell on the node that `make demo KEEP=1` left up; `make down` ends it.
shell:
	$(RIG) shell

down:
	$(RIG) down
