# Everything that is done to this tree has a target here; "make" lists them.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO ?= go

# Tiers a test may need of the machine that must be there: a test that would
# skip for want of one fails instead (package protocol/mustrun). "offered" is all
# but what this kernel cannot have at all: KVM, where it was started without.
MUST_RUN ?= offered

define say-kvm
@if [ ! -e /dev/kvm ] && ! grep -qw kvm /proc/misc; then \
	echo "kvm: this kernel offers none (no kvm in /proc/misc): tests on real KVM are skipped"; fi
endef

# How long each fuzz target runs.
FUZZTIME ?= 10s

# Packages whose tests boot guests or measure pauses: one at a time, as two
# guests under emulation on two cores time out or measure each other.
HEAVY := ./vmm/... ./nodeagent/... ./experiments/... ./cmd/...
LIGHT := ./imageio/... ./protocol/... ./coordinator/...

# Packages that do several things at once, and whose quick tests stay quick under the
# race detector: some 5 minutes together.
CONCURRENT := $(LIGHT) ./nodeagent/... ./vmm/qmp ./vmm/nbd ./vmm/uffd

GENERATED := fermata.pb.go fermata_grpc.pb.go

# Commands are many and none is a file.
.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: setup build ## kill a running MPI job's cluster and put it back from its last checkpoint
	build/demo --out build/demo.json

.PHONY: demo-control
demo-control: setup build ## the same with channel state left out: shows that the demo can fail
	build/demo --control --out build/demo-control.json

.PHONY: check
check: fmt-check vet ## what every change must pass: formatting, vet, staticcheck, quick tests
	$(GO) test -short ./...

# Tests of what is built with the tag failpoints only.
FAILPOINTS := Failpoint|Inject|Arm

.PHONY: test
test: setup build vet ## set up the machine, then run every test, the quick ones also under the race detector; nothing may skip
	$(say-kvm)
	@status=0; \
	FERMATA_MUST_RUN=$(MUST_RUN) $(GO) test -count=1 -p 2 -timeout 20m $(LIGHT) || status=1; \
	FERMATA_MUST_RUN=$(MUST_RUN) $(GO) test -count=1 -p 2 -tags failpoints -run '$(FAILPOINTS)' $(addprefix ./,protocol/failpoint coordinator nodeagent) || status=1; \
	$(GO) test -race -short -p 2 -timeout 20m $(CONCURRENT) || status=1; \
	FERMATA_MUST_RUN=$(MUST_RUN) $(GO) test -count=1 -p 1 -timeout 60m $(HEAVY) || status=1; \
	exit $$status
	$(say-kvm)

.PHONY: race
race: ## quick tests under the race detector
	$(GO) test -race -short ./...

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME (10s)
	@for pkg in $$($(GO) list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "$$pkg $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$pkg; \
		done; \
	done

.PHONY: build
build: ## build the binaries into build/
	@mkdir -p build
	$(GO) build -trimpath -o build/fermata ./cmd/fermata
	CGO_ENABLED=0 $(GO) build -trimpath -o build/fermata-guest ./cmd/fermata-guest
	$(GO) build -trimpath -o build/demo ./experiments/demo

.PHONY: setup
setup: ## install what building and testing needs (root), and make the guests
	.ci/install
	$(MAKE) --no-print-directory guests

.PHONY: guests
guests: ## make the kernel and the RAM disk that demo and tests boot
	$(GO) run ./experiments/guests/build

.PHONY: qemu-newer
qemu-newer: ## get a newer QEMU beside the installed one, in build/qemu-newer
	$(GO) run ./experiments/qemunewer

.PHONY: fmt
fmt: ## format the Go files
	gofmt -w $$(git ls-files -co --exclude-standard '*.go')

.PHONY: fmt-check
fmt-check:
	@unformatted=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); \
	if [ -n "$$unformatted" ]; then echo "not formatted, run make fmt:"; echo "$$unformatted"; exit 1; fi

.PHONY: vet
vet: ## go vet and staticcheck
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

.PHONY: gen
gen: ## generate protocol/api from fermata.proto
	$(call protoc,protocol/api)

.PHONY: gen-check
gen-check: ## tell whether protocol/api is what fermata.proto generates
	@rm -rf build/gen && mkdir -p build/gen
	@$(call protoc,build/gen)
	@for f in $(GENERATED); do \
		diff -u -I '^// .*protoc ' protocol/api/$$f build/gen/$$f || { echo "protocol/api/$$f is stale: run make gen"; exit 1; }; \
	done

# protoc with the plugins that go.mod pins. The version of protoc itself stands
# in a comment of the generated files and changes nothing else.
define protoc
$(GO) build -o build/tools/ google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
PATH="$(CURDIR)/build/tools:$$PATH" protoc -I protocol/api \
	--go_out=$(1) --go_opt=paths=source_relative \
	--go-grpc_out=$(1) --go-grpc_opt=paths=source_relative fermata.proto
endef

.PHONY: clean
clean: ## remove everything that was built, the guests too
	rm -rf build
