# Firebreak. `make` lists the targets.
SHELL := /bin/bash
GO ?= go
CACHE := $(CURDIR)/.cache
export PATH := $(CACHE)/bin:$(PATH)
AGENT := internal/agentbin/bin/firebreak-agent.gz

.DEFAULT_GOAL := help
.PHONY: help build agent check test test-short tools bench generate fuzz clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

agent: ## build the agent that is embedded into firebreak
	@mkdir -p $(dir $(AGENT))
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $(CACHE)/firebreak-agent ./cmd/firebreak-agent
	gzip -9nc $(CACHE)/firebreak-agent > $(AGENT)

build: agent ## build bin/firebreak, one file with the agent and gVisor inside
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o bin/.linked ./cmd/firebreak
	@# A copy starts faster: what the linker wrote lies in the page cache in small pieces.
	cp bin/.linked bin/.copied && mv bin/.copied bin/firebreak && rm bin/.linked

check: ## formatting, vet, staticcheck, layers, package comments, dependencies
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$unformatted" ]; then echo "gofmt -w needed: $$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) mod tidy -diff
	$(GO) test -count=1 .

tools: ## install what the tests need (Debian packages, a current runc, E2B's clients)
	scripts/install-test-tools.sh

test: tools build ## all tests, with the race detector, with every driver that this host can serve required
	FIREBREAK_BIN=$(CURDIR)/bin/firebreak FIREBREAK_REQUIRE=$${FIREBREAK_REQUIRE-fake,process,gvisor,container,wasm,v8,sdk} \
		$(GO) test -race -timeout 30m -p 1 ./...

test-short: build ## the fast loop: no hammers, no bombs of full size
	FIREBREAK_BIN=$(CURDIR)/bin/firebreak $(GO) test -short ./...

bench: tools build ## measure against the peers and write BENCH.md
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $(CACHE)/bin/runsc ./internal/bench/runsc
	@# The state of all contenders lies in memory, since ext4 without a journal looks long for an inode that nobody has
	@# deleted within the minute.
	@mkdir -p $(CACHE)/bench
	unshare --mount sh -c 'mount -t tmpfs -o mode=0700 none $(CACHE)/bench && TMPDIR=$(CACHE)/bench exec $(GO) run ./internal/bench -firebreak bin/firebreak -runsc $(CACHE)/bin/runsc -out BENCH.md'

generate: ## regenerate the protocol code (needs protoc)
	$(GO) generate ./...

fuzz: ## every fuzz target for 30 seconds
	scripts/fuzz.sh 30s

clean: ## remove what was built
	rm -rf bin $(CACHE) $(AGENT)
