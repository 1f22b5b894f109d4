# squib's commands. `make` alone lists them.
#
# Works with GNU make 3.81 (macOS) and later. Guests are cached in $SQUIB_GUEST_CACHE (default ~/.cache/squib-guest).

CARGO ?= cargo
# A cargo that checks and links for aarch64-apple-darwin on other systems. On a Mac the plain one does that.
MACOS_CARGO ?= $(wildcard ../shared/macos-cross/cargo-macos)

.DEFAULT_GOAL := help
.PHONY: help demo test test-kernels build guest minimal-kernel root-disk deps fmt lint docs unit macos bench clean-guests

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: guest ## boot, count, freeze, end the process, resume in a new one, go on counting
	$(CARGO) build --locked --release -p squib-cli
	@target=$${CARGO_TARGET_DIR:-target}; "$$target/release/squib" demo

test: ## the whole suite, real kernels included; this is what CI runs
	@./tests/suite.sh

build: ## the squib program: target/release/squib
	$(CARGO) build --locked --release -p squib-cli

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

lint: ## clippy, warnings are errors
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

docs: ## the API documentation, broken links are errors
	RUSTDOCFLAGS='-D warnings -D rustdoc::broken_intra_doc_links' $(CARGO) doc --locked --workspace --no-deps

unit: ## cargo test alone; the guests must be there
	$(CARGO) test --locked --workspace

macos: ## check, lint and link for aarch64-apple-darwin
	@if [ -n "$(MACOS_CARGO)" ]; then \
	    "$(MACOS_CARGO)" clippy --locked --workspace --all-targets -- -D warnings && \
	    "$(MACOS_CARGO)" test --locked --workspace --no-run; \
	elif [ "$$(uname -sm)" = "Darwin arm64" ]; then \
	    echo "this is the Mac: lint and unit are the check"; \
	else \
	    echo "no cargo for aarch64-apple-darwin here: set MACOS_CARGO to one" >&2; exit 1; \
	fi

test-kernels: ## boot every known Debian kernel and the minimal one, and the long guest tests
	guest-images/fetch.sh bookworm-cloud bookworm-generic trixie-cloud trixie-generic sid-cloud sid-generic
	guest-images/minimal-kernel.sh
	guest-images/rootfs.sh
	$(CARGO) test --locked -p squib-cli -p squib-tests --features squib-tests/long

bench: guest ## boot time beside qemu-system-aarch64, same run
	$(CARGO) build --locked --release -p squib-cli
	@target=$${CARGO_TARGET_DIR:-target}; "$$target/release/squib" bench boot
