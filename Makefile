# squib's commands. `make` alone lists them.
#
# Works with GNU make 3.81 (macOS) and later. Guests are cached in $SQUIB_GUEST_CACHE (default ~/.cache/squib-guest).

CARGO ?= cargo
# A cargo that checks and links for aarch64-apple-darwin on other systems. On a Mac the plain one does that.
MACOS_CARGO ?= $(if $(filter Darwin-arm64,$(shell uname -sm | tr ' ' -)),$(CARGO),$(wildcard ../shared/macos-cross/cargo-macos))
# SIM=1 on a Mac: the software stand-in in place of Hypervisor.framework.
SIM ?=
features = $(if $(SIM),--features sim)
target := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)
squib = $(target)/release/squib
os := $(shell uname -s)
# Whether `make switches` runs every program in each preset, or each in one of them by turns.
SWITCHES ?= presets
# How long `make difftest` looks for differences.
SECONDS ?= 60

.DEFAULT_GOAL := help
.PHONY: help demo test test-kernels build check-host guest minimal-kernel root-disk deps fmt lint scripts docs unit checked switches each-switch macos macos-only conformance-report difftest bench bench-diff

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: check-host guest build ## boot, count, freeze, end the process, resume in a new one, go on counting
	@$(squib) demo

test: check-host ## the whole suite, real kernels included; this is what CI runs
	@SIM=$(SIM) MACOS_CARGO=$(MACOS_CARGO) tests/suite.sh

build: ## the squib program: target/release/squib
	$(CARGO) build --locked --release -p squib-cli $(features)
ifeq ($(os),Darwin)
	@squib-cli/macos/sign.sh "$(squib)"
endif

check-host:
ifeq ($(SIM),)
	@squib-cli/macos/check.sh
endif

guest: ## get the default guest: Debian's arm64 cloud kernel and an initramfs
	@guest-images/fetch.sh bookworm-cloud >/dev/null

minimal-kernel: ## build the minimal guest kernel from Debian's sources (minutes, once)
	@guest-images/minimal-kernel.sh >/dev/null

root-disk: ## build an ext4 disk with a Debian arm64 root
	@guest-images/rootfs.sh >/dev/null

deps: ## install what the suite needs (Debian, as root), or say what is missing
	@tests/deps.sh

fmt: ## formatting, as CI checks it
	$(CARGO) fmt --all --check

lint: scripts ## clippy, warnings are errors; the scripts and workflows
	$(CARGO) clippy --locked --workspace --all-targets --features squib-tests/long,squib-tests/macho $(features) -- -D warnings

scripts: ## shellcheck over every shell script, actionlint over the workflows
	@tests/lint.sh

docs: ## the API documentation, broken links are errors
	RUSTDOCFLAGS='-D warnings -D rustdoc::broken_intra_doc_links' $(CARGO) doc --locked --workspace --no-deps $(features)

unit: ## cargo test alone; the guests must be there
	$(CARGO) test --locked --workspace --no-fail-fast $(features)

checked: ## the engine's tests with checks of overflow and of what unsafe functions ask for, which `make test` leaves out of the engine
	$(CARGO) test --locked -p squib-sim -p squib-difftest --config 'profile.dev.package.squib-sim.overflow-checks=true' \
	    --config 'profile.dev.package.squib-sim.debug-assertions=true'

switches: ## the stand-in's switches many at once, until each was in every position, under every test that has machines
	@FEATURES='$(features)' tests/switches.py $(SWITCHES)

each-switch: ## every position of every switch alone, under the same tests (hours)
	@FEATURES='$(features)' tests/switches.py each

macos: ## check, lint and link for aarch64-apple-darwin, and look into the Mach-O files; on any system
	@[ -n "$(MACOS_CARGO)" ] || { echo "no cargo for aarch64-apple-darwin here: set MACOS_CARGO to one" >&2; exit 1; }
	@mkdir -p $(target)/macos
	$(macos) --workspace --all-targets >$(target)/macos/framework.json
	$(call inspect,framework,SQUIB_MACHO)
	$(macos) -p squib-cli -p squib-examples --bins --examples --features squib-cli/sim,squib-examples/sim >$(target)/macos/sim.json
	$(call inspect,sim,SQUIB_MACHO_SIM)

# A build with clippy's compiler in place of rustc, for the workspace: lints, compiles and links at once. A cross linker may have an older
# macOS in the target it was given; the last one given counts.
macos = CARGO_TARGET_AARCH64_APPLE_DARWIN_RUSTFLAGS='-D warnings $(if $(filter Darwin,$(os)),,-C link-arg=--target=arm64-apple-macosx15.0)' \
    $(MACOS_CARGO) build --locked --profile link --config 'build.rustc-workspace-wrapper="clippy-driver"' \
    --message-format json-render-diagnostics
# $(call inspect,BUILD,VARIABLE): the tests of what that build has linked.
inspect = $(2)=$(abspath $(target))/macos/$(1).json \
    $(CARGO) test --locked --workspace --features squib-tests/macho $(features) --test macho -- --nocapture $(1)

conformance-report: check-host ## what is known about Hypervisor.framework, fact by fact, tried on this machine: target/conformance/report.md
	@mkdir -p $(target)/conformance
	@$(CARGO) test --locked -p squib-tests --test conformance --no-run --message-format json-render-diagnostics $(features) \
	    >$(target)/conformance/build.json
	@$(CARGO) run --locked -q -p squib-tests --bin conformance-report $(features) -- $(target)/conformance/build.json $(target)/conformance

macos-only: ## the code that only a Mac compiles, with its line count
	@$(CARGO) test --locked -q -p squib-tests --test macos_only mac_only $(features) -- --nocapture

test-kernels: ## boot every known Debian kernel and the minimal one, and the long guest tests
	guest-images/fetch.sh bookworm-cloud bookworm-generic trixie-cloud trixie-generic sid-cloud sid-generic
	guest-images/minimal-kernel.sh
	guest-images/rootfs.sh
	$(CARGO) test --locked -p squib-cli -p squib-tests --features squib-tests/long $(features)

difftest: ## the engine against QEMU: random instructions (SECONDS=3600 for an hour), random translation tables
	$(CARGO) run --locked --release -p squib-difftest -- --seconds $(SECONDS)
	$(CARGO) run --locked --release -p squib-difftest --bin translation -- --seconds 60

bench: check-host guest build ## boot time beside qemu-system-aarch64, restores beside each other, same run; draws docs/img/restore.svg
	@$(squib) bench boot
	@mkdir -p docs/img
	@$(squib) bench restore --svg docs/img/restore.svg

bench-diff: check-host build ## what dirty tracking costs, and how long a guest stands still for a diff; draws docs/img/diff.svg
	@mkdir -p docs/img
	@$(squib) bench diff --svg docs/img/diff.svg
