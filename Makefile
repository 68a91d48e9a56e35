# Two targets do everything on a fresh machine: `make demo` and `make test`.

.DEFAULT_GOAL := help
.PHONY: help demo test test-clients test-openapi test-crash test-sshd test-openssh fuzz-lockout test-model packages test-packages test-guests test-disk-states test-power-cuts test-points test-selinux test-long-life test-hostile-answers test-hostile-guest test-defences fuzz check bench scale size deps

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## bind a key to a private sshd through the control plane, log in with it, take it away again
	@bash demo/demo.sh

test: export RUST_TEST_THREADS ?= 4
test: deps ## every test; what a machine cannot run says why it is skipped
	cargo test --workspace --no-run
	@bash tests/all.sh

test-crash: deps ## apply and run killed, and each of their calls failing, at some 2,600 points; needs root; fifteen minutes
	KEYPAIR_CRASH_POINTS=all CARGO_PROFILE_DEV_OPT_LEVEL=1 cargo test --test crash --test disk_faults -- --nocapture

test-sshd: ## the matrix on the OpenSSH of Debian 11, 12 and 13, each a root file system that is built once; needs root; half an hour
	@bash tests/suites.sh

test-openssh: ## the matrix on each release of OpenSSH that KEYPAIR_OPENSSH names by its prefix (colons between); needs root; ten minutes each
	@bash tests/openssh.sh

test-model: ## the model with a larger bound, and long random ways, others each time
	KEYPAIR_MODEL_LARGE=1 CARGO_PROFILE_DEV_OPT_LEVEL=1 cargo test --test model --test sequences -- --nocapture

test-clients: ## the platform's own Python SDK against the control plane, with signatures on; one minute
	@bash controlplane/tests/clients/run.sh

test-openapi: ## docs/openapi.yaml held against the running control plane by schemathesis; two minutes
	@bash controlplane/tests/clients/openapi.sh

packages: ## the .deb and the .rpm for x86_64 and aarch64, in target/packages
	@bash packaging/build.sh

test-packages: ## builds the packages twice and tries them: the same bytes, lintian, rpmlint, the oldest C library; needs root; five minutes
	@bash tests/packages.sh

test-guests: ## the packages in real Debian guests: install, log in, boot, upgrade, purge; needs root; 10 minutes, the first time 20
	@bash tests/guests/run.sh

test-points: ## a guest's command stopped at 20 points, and stop, kill, mask, removal, daemon-reexec, soft-reboot there; needs root; half an hour
	@SUITES="points-bookworm points-trixie" bash tests/guests/run.sh

test-long-life: deps ## 20,000 commands through one daemon: its memory, descriptors and state stay as they are; needs root; 40 minutes
	KEYPAIR_LONG_LIFE=20000 cargo test --test long_life -- --nocapture

test-disk-states: deps ## every state of the disk that a power cut may leave, laid out and recovered from; needs root; ten minutes
	KEYPAIR_POWER_CUTS=all cargo test -p keypair-agent --test power_cut -- --nocapture

test-power-cuts: ## 30 power cuts of a qemu guest in a stream of commands, and what became of each; needs root; half an hour
	@SUITES="power-1 power-2" bash tests/guests/run.sh

test-selinux: ## a qemu guest whose SELinux enforces: attach, boot, wrong labels, and what was denied; needs root; a quarter of an hour
	@SUITES=selinux bash tests/guests/run.sh

test-hostile-answers: deps ## two hours of random answers from somebody who is not the metadata service; needs root
	KEYPAIR_HOSTILE_ANSWERS=$${KEYPAIR_HOSTILE_ANSWERS:-7200} cargo test --test hostile_channel -- --exact lies::daemon_survives_random_responses --nocapture

test-hostile-guest: deps ## 10,000 changes of key files each way while the owner of the home swaps what is on the way; needs root; two minutes
	KEYPAIR_HOSTILE_RACES=10000 cargo test -p keypair-agent --test hostile_guest -- --nocapture

test-defences: deps ## each defence of docs/threat-model.md taken out, and its test seen to fail; needs root; half an hour
	KEYPAIR_DEFENCES=$${KEYPAIR_DEFENCES:-all} cargo test --test defences -- --nocapture

fuzz: ## every parser under a fuzzer, 60 s each (FUZZ_SECONDS); what it finds goes into fuzz/corpus; ten minutes
	@bash fuzz/run.sh

fuzz-lockout: deps ## 2,000 random sshd configurations, each judged by real logins alone; needs root; forty minutes
	KEYPAIR_LOCKOUT_CASES=$${KEYPAIR_LOCKOUT_CASES:-2000} CARGO_PROFILE_DEV_OPT_LEVEL=1 cargo test -p keypair-agent --test lockout_fuzz -- --nocapture

check: ## format, lints, documentation, dependencies
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps
	cargo deny --workspace check bans licenses sources

bench: deps ## one attach against the floor (write + fsync + rename + fsync of the directory)
	cargo bench -p keypair-agent

scale: deps ## ten thousand agents against the control plane; writes the figures and charts of docs/scale.md; twenty minutes
	cargo bench -p keypair-controlplane --bench scale

size: ## the release binary's size, and its memory while it waits for commands
	@bash demo/footprint.sh

deps: ## installs what the tests need besides Rust: sshd, ssh, strace, setfacl, ip, unshare, PostgreSQL, …
	@bash demo/install-tools.sh sshd ssh ssh-keygen strace setfacl ip unshare nsenter timeout initdb setpriv
