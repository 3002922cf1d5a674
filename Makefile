# Escale. `make help` lists what can be made.
SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

VERSION   ?= $(shell git describe --tags --match 'v*' --dirty 2>/dev/null | sed 's/^v//' | grep . || echo 0.1.0-dev)
COMMIT    ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
BUILDTIME ?= $(shell git log -1 --format=%cI 2>/dev/null)
X         := escale.dev/escale/internal
LDFLAGS   := -s -w $(foreach p,daemon cli runtime/native,-X $(X)/$(p).Version=$(VERSION) -X $(X)/$(p).GitCommit=$(COMMIT) -X $(X)/$(p).BuildTime=$(BUILDTIME))

PREFIX  ?= /usr/local
DESTDIR ?=
DOCKER  ?=
KEEP    ?=
ROUNDS  ?= 300
CONTAINERS ?= 1000
CLIENTS ?= 16
VMROUNDS ?= 5
NETROUNDS ?= 10000
FUZZTIME ?= 10s
TESTFLAGS ?=
RUNTIME ?=

export CGO_ENABLED = 0

# Tests that start engines have them take what users get, unless RUNTIME names another.
unexport RUNTIME
test test-vm kill trial soak: export ESCALE_RUNTIME := $(or $(RUNTIME),$(ESCALE_RUNTIME))

##@ Build
.PHONY: build
build: bin/escale bin/escaled bin/escale-shim bin/escale-store bin/escale-runtime bin/runc bin/docker-init ## all programs, into bin/

# Go knows best what has changed, so these always ask it.
.PHONY: bin/escale bin/escaled bin/escale-shim bin/escale-store bin/escale-runtime
bin/escale bin/escaled bin/escale-shim bin/escale-store bin/escale-runtime:
	go build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/$(@F)

# The OCI runtime that can be chosen instead of ours, from the module that go.mod pins; static, with seccomp.
bin/runc: go.mod
	scripts/need.sh gcc pkg-config libseccomp-dev
	CGO_ENABLED=1 go build -trimpath -tags 'seccomp osusergo netgo' \
	  -ldflags '-s -w -linkmode external -extldflags -static' -o $@ github.com/opencontainers/runc
	touch $@

# The init of `run --init` is tini, the program that Docker ships under this name;
# Debian's package tini has it as a static file.
bin/docker-init:
	@scripts/need.sh --optional "bin/docker-init, and with it 'run --init'" tini
	@if [ -x /usr/bin/tini-static ]; then install -D -m 755 /usr/bin/tini-static $@; fi

# What protoc makes is checked in: only who changes a .proto needs it.
.PHONY: proto
proto: ## the protocol between nodes, made anew from its .proto
	scripts/need.sh protobuf-compiler
	@mkdir -p build/tools
	go build -o build/tools google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
	PATH="$(CURDIR)/build/tools:$$PATH" protoc -I internal/api/node/wire --go_out=paths=source_relative:internal/api/node/wire \
	  --go-grpc_out=paths=source_relative:internal/api/node/wire node.proto

##@ Try
.PHONY: run
run: ## build, and show an app that is killed, updated under load and rolled back (needs root; KEEP=1 stays)
	@$(MAKE) --no-print-directory $$([ "$$(id -u)" = 0 ] && echo build || echo bin/escale bin/escaled bin/escale-shim)
	@KEEP='$(KEEP)' scripts/demo.sh

##@ Check
# What of the engine is tested with runc as well: a minute of all that runtimes do.
WITH_RUNC := ^(TestScripts|TestEngine)$$/^(docker|nothing_left|keep|policy|stop)$$/^(life|exec|limits|rights|options|stop|restart|stdio|tty|)$$

.PHONY: test
test: build test-needs ## every test (root: the engine's too), some 30 rounds of the kill test; RUNTIME=runc with that instead of our own
	go test -timeout 15m $(TESTFLAGS) $$(go list ./... | grep -v '/test/')
	go test -timeout 45m -count=1 -p 1 $(TESTFLAGS) ./test/...
	$(if $(ESCALE_RUNTIME),,ESCALE_RUNTIME=runc go test -timeout 10m -count=1 $(TESTFLAGS) -run '$(WITH_RUNC)' ./test/e2e)
	@[ "$$(id -u)" = 0 ] || echo "make test: without root, whatever needs namespaces, mounts or cgroups was skipped (go test -v names each); 'sudo make test' runs it"

.PHONY: test-needs
test-needs:
	@scripts/need.sh --optional 'tests that run busybox' busybox-static
	@scripts/need.sh --optional 'the tests of clients that Debian ships' python3-docker docker-compose
# Not docker.io, whose package starts an engine and its firewall: its tests are run where it is.
	@scripts/need.sh --optional 'copies of images between Escale and these' skopeo podman

# Where its module lies: it says "exclude", with which go install builds nothing.
COMPOSE_VERSION ?= v2.40.3
.PHONY: compose-program
compose-program: ## Docker Compose's own program, which TestComposePlugin has at apps (minutes)
	dir=$$(go mod download -json github.com/docker/compose/v2@$(COMPOSE_VERSION) | sed -n 's/.*"Dir": "\(.*\)",/\1/p'); \
	  cd "$$dir" && CGO_ENABLED=0 go build -o "$${XDG_CACHE_HOME:-$$HOME/.cache}/escale-test/compose-$(COMPOSE_VERSION)/docker-compose" ./cmd

.PHONY: test-short
test-short: ## quick tests only, no root needed
	go test -short -timeout 5m $(TESTFLAGS) ./...

.PHONY: check
check: ## gofmt, go vet, staticcheck
	@unformatted=$$(git ls-files -z --cached --others --exclude-standard '*.go' | xargs -0 -r ls -d 2>/dev/null | xargs -r gofmt -l); \
	if [ -n "$$unformatted" ]; then echo "not formatted (gofmt -w them):"; echo "$$unformatted"; exit 1; fi
	go vet ./...
	go tool staticcheck ./...

.PHONY: conformance
conformance: ## the OCI's suite of registries, all four workflows, on the disk and in a bucket (fetched; or ESCALE_CONFORMANCE=PATH)
	suite=$$(scripts/conformance.sh); ESCALE_CONFORMANCE=$$suite go test -count=1 -v -run '^Test(Conformance|Bucket)$$/^conformance$$' ./internal/registry/server

# Without RUNTIME runc is compared with itself: what differs then is by chance.
.PHONY: validate
validate: bin/runc ## the OCI's validation of runtimes: what runc passes, RUNTIME=bin/escale-runtime must pass (minutes; root)
	suite=$$(scripts/validation.sh); ESCALE_VALIDATION=$$suite RUNTIME='$(RUNTIME)' go test -count=1 -timeout 60m -v -run '^TestValidation$$' ./test/oci

.PHONY: kill
kill: build test-needs ## hundreds of rounds of killing the engine under load (ROUNDS=300), and its machine (VMROUNDS=5)
	ESCALE_KILL_ROUNDS=$(ROUNDS) go test -count=1 -timeout 0 -v -run Kill ./test/kill
	VMTESTS= scripts/vm.sh
	ESCALE_VM=$(CURDIR)/build/vm ESCALE_VM_ROUNDS=$(VMROUNDS) go test -count=1 -timeout 0 -v -run PowerCut ./test/vm

.PHONY: test-vm
test-vm: build test-needs ## the engine's tests in a virtual machine: Debian's kernel, pure cgroup v2, AppArmor, power cuts
	scripts/vm.sh
	ESCALE_VM=$(CURDIR)/build/vm ESCALE_VM_ROUNDS=$(VMROUNDS) go test -count=1 -timeout 0 -v ./test/vm

.PHONY: trial
trial: build test-needs ## a cluster of five engines that loses nodes, leaders and majorities under load; prints how long each takes
	ESCALE_TRIAL=1 go test -count=1 -timeout 0 -v ./test/cluster

LABS ?= ../shared/acceptance
.PHONY: labs
labs: build test-needs ## the exercises of container courses (LABS=their folder) with docker's client: one engine, and five nodes
	scripts/labs.sh '$(LABS)'

.PHONY: soak
soak: build test-needs ## many containers' whole lives with the engine killed meanwhile (CONTAINERS=1000 CLIENTS=16)
	ESCALE_SOAK_CONTAINERS=$(CONTAINERS) ESCALE_SOAK_CLIENTS=$(CLIENTS) go test -count=1 -timeout 0 -v -run Soak ./test/soak

.PHONY: net-rounds
net-rounds: ## containers connected to networks and disconnected, NETROUNDS=10000 times: nothing is left
	ESCALE_NETWORK_ROUNDS=$(NETROUNDS) go test -count=1 -timeout 0 -v -run TestConnectRounds ./internal/network

.PHONY: scale
scale: ## the loops of the cluster on thousands of machines that are made up: the figures of docs/scale.md
	for of in 50/1000 1000/20000 5000/100000; do ESCALE_SCALE_NODES=$${of%/*} ESCALE_SCALE_TASKS=$${of#*/} \
	  go test -count=1 -timeout 0 -v -run '^TestScale$$' ./internal/cluster/simulation || exit 1; done

.PHONY: fuzz
fuzz: ## every fuzz test for FUZZTIME=10s
	@grep -rlE '^func Fuzz' --include='*_test.go' internal client test bench 2>/dev/null | xargs -rn1 dirname | sort -u | while read -r dir; do \
	  grep -hoE '^func Fuzz[A-Za-z0-9_]*' "$$dir"/*_test.go | sed 's/^func //' | while read -r f; do \
	    echo "== $$dir $$f"; go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) "./$$dir" </dev/null; done; done

.PHONY: bench
bench: build ## figures beside another engine: make bench PEER=unix:///var/run/docker.sock [BENCHFLAGS=...]
	@scripts/need.sh --optional 'what these measure of networks' iperf3 wrk
	@scripts/bench.sh $(if $(PEER),'$(PEER)')

##@ Install
.PHONY: install
install: build ## into PREFIX=/usr/local under DESTDIR; DOCKER=1 takes Docker's names too
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' DOCKER='$(DOCKER)' packaging/install.sh install

.PHONY: uninstall
uninstall: ## undo install; data and configuration stay
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' packaging/install.sh uninstall

##@ Else
.PHONY: clean
clean: ## remove bin/ and build/
	rm -rf bin build

.PHONY: help
help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
